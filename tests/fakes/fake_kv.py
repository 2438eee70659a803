"""A KV cache whose keys and values are the tokens themselves, so that a wrong block gives a wrong answer.

Everything a step says is held against what went before. What does not hold raises `Inconsistent`.
"""

from dataclasses import dataclass, field

from teengined.protocol.worker_messages import BlockCopy, OpenStage, RunStep, SequenceOpen, SequencePart

__all__ = ["FakeKV", "Inconsistent", "OpenSequence"]


class Inconsistent(Exception):
    """The daemon said what cannot be."""


@dataclass
class OpenSequence:
    """One sequence between its opening and its closing."""

    opened: SequenceOpen
    table: list[int] = field(default_factory=list)
    owned: set[int] = field(default_factory=set)
    """Blocks that it alone may write to: the others hold a prefix that is shared."""
    length: int = 0
    """Tokens whose KV is there."""
    num_guessed: int = 0
    """Of them the last ones that may have been wrong guesses; only the last stage knows."""


class FakeKV:
    """The blocks of one stage."""

    def __init__(self, order: OpenStage) -> None:
        self.block_tokens = order.block_tokens
        self.blocks: list[list[int | None]] = [[None] * order.block_tokens for _ in range(order.num_blocks)]
        self.host: list[list[int | None]] = [[] for _ in range(order.num_host_slots)]
        self.disk: dict[int, list[int | None]] = {}
        self.private: set[int] = set()
        """Blocks that were restored in part, and so belong to whoever gets them next."""
        self.owners: dict[int, int] = {}
        self.sequences: dict[int, OpenSequence] = {}
        self.next_step = 0

    def begin(self, step: RunStep) -> None:
        """Take in what changed, in the order of the protocol; parts follow with `write`."""
        check(step.step == self.next_step, f"step {step.step} follows {self.next_step - 1}")
        self.next_step += 1
        for sequence_id in step.closed:
            check(sequence_id in self.sequences, f"closed sequence {sequence_id} is not open")
            closed = self.sequences.pop(sequence_id)
            for block in closed.owned:
                del self.owners[block]
        for opened in step.opened:
            check(opened.sequence_id not in self.sequences, f"sequence {opened.sequence_id} is open already")
            self.sequences[opened.sequence_id] = OpenSequence(opened)
        self.spool(step)
        for part in step.parts:
            self.extend(part)
        for copy in step.copies:
            self.copy(copy)
        ids = [part.sequence_id for part in step.parts]
        check(len(set(ids)) == len(ids), "a sequence has two parts in one step")

    def spool(self, step: RunStep) -> None:
        for stored in step.spooled:
            self.host[stored.slot] = list(self.blocks[stored.block])
        for restored in step.restored:
            check(restored.block not in self.owners, f"block {restored.block} is restored and somebody's")
            content = self.host[restored.slot][: restored.num_tokens]
            check(None not in content, f"slot {restored.slot} holds less than {restored.num_tokens} tokens")
            self.blocks[restored.block] = content + [None] * (self.block_tokens - restored.num_tokens)
            self.private.discard(restored.block)
            if restored.num_tokens < self.block_tokens:
                self.private.add(restored.block)
        for move in step.moves:
            if move.to_disk:
                self.disk[move.disk] = list(self.host[move.host])
            else:
                self.host[move.host] = list(self.disk[move.disk])

    def extend(self, part: SequencePart) -> None:
        sequence = self.of(part.sequence_id)
        num_shared = 0
        if sequence.length == 0 and not sequence.table:
            sequence.length = part.start_position
            num_shared = -(-part.start_position // self.block_tokens)
        known = range(sequence.length - sequence.num_guessed, sequence.length + 1)
        check(part.start_position in known, f"part begins at {part.start_position}, not {sequence.length}")
        for index, block in enumerate(part.new_blocks):
            check(0 <= block < len(self.blocks), f"there is no block {block}")
            if index >= num_shared or block in self.private:
                self.private.discard(block)
                self.own(sequence, block)
        sequence.table += part.new_blocks
        needed = part.start_position + len(part.token_ids)
        room = len(sequence.table) * self.block_tokens
        check(bool(part.token_ids), f"sequence {part.sequence_id} has a part without tokens")
        check(needed <= room, f"sequence {part.sequence_id} needs {needed} tokens of KV and has {room}")

    def copy(self, copy: BlockCopy) -> None:
        sequence = self.of(copy.sequence_id)
        check(sequence.table[copy.index] in (copy.source, copy.target), f"block {copy.source} is not in the table")
        sequence.owned.discard(copy.source)
        if self.owners.get(copy.source) == copy.sequence_id:
            del self.owners[copy.source]
        self.own(sequence, copy.target)
        self.blocks[copy.target] = list(self.blocks[copy.source])
        sequence.table[copy.index] = copy.target

    def own(self, sequence: OpenSequence, block: int) -> None:
        owner = self.owners.setdefault(block, sequence.opened.sequence_id)
        check(owner == sequence.opened.sequence_id, f"block {block} belongs to sequence {owner}")
        sequence.owned.add(block)

    def write(self, part: SequencePart) -> OpenSequence:
        """Store the part's tokens."""
        sequence = self.of(part.sequence_id)
        for position, token in enumerate(part.token_ids, part.start_position):
            block = sequence.table[position // self.block_tokens]
            check(block in sequence.owned, f"sequence {part.sequence_id} writes to block {block}, which it shares")
            self.blocks[block][position % self.block_tokens] = token
        sequence.length = part.start_position + len(part.token_ids)
        sequence.num_guessed = part.num_drafted
        return sequence

    def read(self, sequence: OpenSequence, position: int) -> int:
        """Return the token at a position, as the blocks have it."""
        token = self.blocks[sequence.table[position // self.block_tokens]][position % self.block_tokens]
        check(token is not None, f"nothing was written at position {position}")
        assert token is not None
        return token

    def of(self, sequence_id: int) -> OpenSequence:
        check(sequence_id in self.sequences, f"sequence {sequence_id} was not opened")
        return self.sequences[sequence_id]


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise Inconsistent(problem)
