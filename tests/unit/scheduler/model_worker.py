"""A worker whose KV is plain: each slot of a block holds a fingerprint of the tokens up to its position.

It obeys runs in order as stages do, and fails the moment a part would read keys and values that are not its own
sequence's, or write where another could read.
"""

import hashlib
from dataclasses import dataclass, field

from teengined.core.request import Goal, TokenLogprobs
from teengined.protocol.worker_messages import (
    PooledVector,
    PromptLogprobs,
    SampledToken,
    SequenceOpen,
    SequencePart,
    SlotMove,
)
from teengined.scheduler.events import Run, StepCompleted
from teengined.scheduler.limits import SpoolLimits

NUM_TOKEN_IDS = 6
EOS = 5


def fingerprint(before: bytes, token_id: int) -> bytes:
    return hashlib.blake2b(before + bytes([token_id]), digest_size=8).digest()


@dataclass
class Known:
    """What the worker keeps of an open sequence."""

    opening: SequenceOpen
    table: list[int] = field(default_factory=list)


class ModelWorker:
    def __init__(self, num_blocks: int, block_tokens: int, spool: SpoolLimits | None = None) -> None:
        self.block_tokens = block_tokens
        spool = spool or SpoolLimits()
        self.host: list[list[bytes | None]] = [[] for _ in range(spool.num_host_slots)]
        self.disk: list[list[bytes | None]] = [[] for _ in range(spool.num_disk_slots)]
        self.moving: list[SlotMove] = []
        self.blocks: list[list[bytes | None]] = [[None] * block_tokens for _ in range(num_blocks)]
        self.known: dict[int, Known] = {}

    def obey(self, run: Run, prints: dict[int, list[bytes]], *, fails: bool) -> StepCompleted:
        """Execute a run. `prints` has the right fingerprints of each sequence; a run that fails writes nonsense."""
        for sequence_id in run.closed:
            assert self.known.pop(sequence_id, None) is not None, f"closed {sequence_id}, which is not open"
        starts = {part.sequence_id: part.start_position for part in run.parts}
        for opening in run.opened:
            assert opening.sequence_id not in self.known, f"opened {opening.sequence_id} twice"
            assert opening.pooling != "mean" or starts[opening.sequence_id] == 0, "a mean needs every row"
            self.known[opening.sequence_id] = Known(opening)
        self._spool(run)
        for part in run.parts:
            self.known[part.sequence_id].table += part.new_blocks
        assert {item.sequence_id for item in (*run.opened, *run.copies)} <= {item.sequence_id for item in run.parts}
        self._copy(run)
        self._check_writers(run)
        prints = {part.sequence_id: guessed(part, prints[part.sequence_id]) for part in run.parts}
        for part in run.parts:
            self._run(part, prints[part.sequence_id], fails=fails)
        return self._answer(run, prints)

    def _copy(self, run: Run) -> None:
        sources = {copy.source for copy in run.copies}
        targets = [copy.target for copy in run.copies]
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets), "a copy's source is another's target"
        for copy in run.copies:
            table = self.known[copy.sequence_id].table
            assert table[copy.index] == copy.source
            table[copy.index] = copy.target
            self.blocks[copy.target] = list(self.blocks[copy.source])

    def _spool(self, run: Run) -> None:
        busy = {move.host for move in self.moving}
        assert len({copy.slot for copy in run.spooled}) == len(run.spooled)
        assert not busy & {copy.slot for copy in run.spooled}, "a slot is written to while it moves"
        for copy in run.spooled:
            self.host[copy.slot] = list(self.blocks[copy.block])
        assert not {move.host for move in self.moving if not move.to_disk} & {copy.slot for copy in run.restored}
        held = {block_id for known in self.known.values() for block_id in known.table}
        assert not held & {copy.block for copy in run.restored}, "a block that is somebody's is written over"
        for copy in run.restored:
            content = self.host[copy.slot]
            assert None not in content[: copy.num_tokens]
            self.blocks[copy.block] = content[: copy.num_tokens] + [None] * (self.block_tokens - copy.num_tokens)
        for move in run.moves:
            assert not any(_touch(move, other) for other in self.moving)
            self.moving.append(move)
            if not move.to_disk:
                assert move.digests == (b"right",)
                self.host[move.host] = [b"half"] * self.block_tokens
            else:
                self.disk[move.disk] = [b"half"] * self.block_tokens

    def end_move(self, move: SlotMove, *, fails: bool) -> None:
        """Let a move be over: what was at its source until now arrives, or nonsense."""
        self.moving.remove(move)
        if move.to_disk:
            self.disk[move.disk] = [b"half"] if fails else list(self.host[move.host])
        elif not fails:
            self.host[move.host] = list(self.disk[move.disk])

    def _check_writers(self, run: Run) -> None:
        holders: dict[int, set[int]] = {}
        for sequence_id, known in self.known.items():
            assert len(set(known.table)) == len(known.table)
            for block_id in known.table:
                holders.setdefault(block_id, set()).add(sequence_id)
        for part in run.parts:
            first = part.start_position // self.block_tokens
            last = (part.start_position + len(part.token_ids) - 1) // self.block_tokens  # guesses are written, too
            for block_id in self.known[part.sequence_id].table[first : last + 1]:
                assert holders[block_id] == {part.sequence_id}, f"block {block_id} is written but {holders[block_id]}"

    def _run(self, part: SequencePart, right: list[bytes], *, fails: bool) -> None:
        table = self.known[part.sequence_id].table
        size = self.block_tokens
        for position in range(part.start_position):
            found = self.blocks[table[position // size]][position % size]
            assert found == right[position], f"sequence {part.sequence_id} reads another's KV at {position}"
        for position in range(part.start_position, part.start_position + len(part.token_ids)):
            self.blocks[table[position // size]][position % size] = None if fails else right[position]

    def _answer(self, run: Run, prints: dict[int, list[bytes]]) -> StepCompleted:
        tokens: list[SampledToken] = []
        logprobs: list[PromptLogprobs] = []
        vectors: list[PooledVector] = []
        for part in run.parts:
            opening, right = self.known[part.sequence_id].opening, prints[part.sequence_id]
            stop = part.start_position + len(part.token_ids)
            for place in range(stop - part.num_drafted, stop + 1) if part.sample else ():
                token_id = drawn(opening, place, right[place - 1])
                tokens.append(SampledToken(sequence_id=part.sequence_id, token_id=token_id))
                if place < stop and part.token_ids[place - part.start_position] != token_id:
                    break
            told = told_positions(opening, part)
            if told:
                rows = tuple(TokenLogprobs(token_id=position, logprob=0.0) for position in told)
                logprobs.append(PromptLogprobs(sequence_id=part.sequence_id, start_position=told[0], logprobs=rows))
            if opening.goal is Goal.EMBED and stop == opening.num_prompt_tokens:
                vectors.append(PooledVector(sequence_id=part.sequence_id, vector=right[stop - 1]))
        return StepCompleted(
            step=run.step, tokens=tuple(tokens), prompt_logprobs=tuple(logprobs), vectors=tuple(vectors)
        )


def drawn(opening: SequenceOpen, position: int, before: bytes) -> int:
    """Return the token at a position, given the fingerprint of those before it."""
    token_id = (before[0] + opening.choice) % NUM_TOKEN_IDS
    too_early = position - opening.num_prompt_tokens < opening.sampling.min_tokens
    return 0 if token_id == EOS and too_early else token_id


def guessed(part: SequencePart, right: list[bytes]) -> list[bytes]:
    """Return the right fingerprints up to a part's guesses, and those that follow from the guesses."""
    prints = right[: part.start_position + len(part.token_ids) - part.num_drafted]
    for token_id in part.token_ids[len(part.token_ids) - part.num_drafted :]:
        prints.append(fingerprint(prints[-1], token_id))
    return prints


def _touch(one: SlotMove, other: SlotMove) -> bool:
    return one.host == other.host or one.disk == other.disk


def told_positions(opening: SequenceOpen, part: SequencePart) -> range:
    """Return the positions of prompt tokens whose log-probabilities the rows of a part give."""
    wanted = opening.goal is Goal.SCORE or opening.sampling.prompt_logprobs is not None
    stop = part.start_position + len(part.token_ids)
    first = max(part.start_position + 1, opening.score_start, 1)
    return range(first, min(stop + 1, opening.num_prompt_tokens)) if wanted else range(0)


def num_logit_rows(opening: SequenceOpen, part: SequencePart) -> int:
    """Return how many rows of a part the head is needed for."""
    told = told_positions(opening, part)
    last_is_told = bool(told) and told[-1] == part.start_position + len(part.token_ids)
    return len(told) + int(part.sample and not last_is_told) + part.num_drafted
