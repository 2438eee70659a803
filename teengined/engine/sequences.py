"""What a stage knows of the sequences that run on it: their blocks. A step tells only what changes."""

from array import array
from collections.abc import Iterable, Sequence

from teengined.core.errors import InternalError
from teengined.models.batch import BatchEntry
from teengined.models.kv import KVPool
from teengined.protocol.worker_messages import BlockCopy, RunStep, SequencePart

__all__ = ["Sequences"]


class Sequences:
    """The block tables of one stage, and the pool they point into."""

    def __init__(self, pool: KVPool) -> None:
        """Start with none."""
        self._pool = pool
        self._tables: dict[int, array[int]] = {}

    def apply(self, step: RunStep) -> None:
        """Take over a step's changes: closed, opened, new blocks, copies.

        All of them, also where one is wrong: later steps build on the others. Blocks are cleared after the copies,
        since one that was shared may be read by a copy and have its next owner in the same step. Of a copy the
        sequence shares what lies before its part; the rest is the other sequence's, and forgotten.

        Raises:
            InternalError: the step names a sequence, a block or a place that is not there.
        """
        for sequence_id in step.closed:
            self._tables.pop(sequence_id, None)
        for opened in step.opened:
            self._tables[opened.sequence_id] = array("i")
        unwritten = [block for part in step.parts for block in self._unwritten(part)]
        problems = [problem for part in step.parts if (problem := self._grow(part))]
        copies = [copy for copy in step.copies if self._fits(copy)]
        problems += [f"copy {copy} does not fit" for copy in step.copies if copy not in copies]
        self._copy(copies)
        self._pool.clear_tails(self._tails(step, copies))
        self._pool.clear(unwritten)
        if problems:
            raise InternalError(f"step {step.step}: {problems[0]}")

    def entries(self, step: RunStep) -> tuple[BatchEntry, ...]:
        """Return the step's parts with their tables.

        Raises:
            InternalError: a part is empty, of an unknown sequence, or goes beyond its blocks.
        """
        return tuple(self._entry(step.step, part) for part in step.parts)

    def _unwritten(self, part: SequencePart) -> list[int]:
        """Return the new blocks of a part that hold nothing before it: others hold a prefix that was there already."""
        first_index = len(self._tables.get(part.sequence_id, ()))
        num_written = max(0, -(-part.start_position // self._pool.shape.block_tokens) - first_index)
        return [block for block in part.new_blocks[num_written:] if self._exists(block)]

    def _grow(self, part: SequencePart) -> str:
        """Append a part's new blocks to its table; return what is wrong with them."""
        table = self._tables.get(part.sequence_id)
        if table is None:
            return f"sequence {part.sequence_id} was not opened"
        if not all(map(self._exists, part.new_blocks)):
            return f"sequence {part.sequence_id} got blocks {part.new_blocks} of {self._pool.shape.num_blocks}"
        table.extend(part.new_blocks)
        return ""

    def _entry(self, step: int, part: SequencePart) -> BatchEntry:
        table = self._tables.get(part.sequence_id, array("i"))
        room = len(table) * self._pool.shape.block_tokens
        entry = BatchEntry(table=table, num_tokens=len(part.token_ids), start_position=part.start_position)
        if entry.num_tokens < 1 or entry.start_position < 0 or entry.end_position > room:
            raise InternalError(
                f"step {step}: sequence {part.sequence_id} runs tokens {entry.start_position} to {entry.end_position},"
                f" and its {len(table)} blocks hold {room}"
            )
        return entry

    def _fits(self, copy: BlockCopy) -> bool:
        table = self._tables.get(copy.sequence_id, array("i"))
        return 0 <= copy.index < len(table) and self._exists(copy.source) and self._exists(copy.target)

    def _exists(self, block: int) -> bool:
        return 0 <= block < self._pool.shape.num_blocks

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        for copy in copies:
            self._tables[copy.sequence_id][copy.index] = copy.target
        for run in _independent(copies):
            self._pool.copy([copy.source for copy in run], [copy.target for copy in run])

    def _tails(self, step: RunStep, copies: Sequence[BlockCopy]) -> dict[int, int]:
        """Return where in each copied block its sequence's own tokens end."""
        starts = {part.sequence_id: part.start_position for part in step.parts}
        block_tokens = self._pool.shape.block_tokens
        ends = {
            copy.target: starts[copy.sequence_id] - copy.index * block_tokens
            for copy in copies
            if copy.sequence_id in starts
        }
        return {target: end for target, end in ends.items() if 0 <= end < block_tokens}


def _independent(copies: Sequence[BlockCopy]) -> Iterable[list[BlockCopy]]:
    """Cut copies into runs in which none reads or writes what an earlier one of the run has written."""
    run: list[BlockCopy] = []
    written: set[int] = set()
    for copy in copies:
        if copy.source in written or copy.target in written:
            yield run
            run, written = [], set()
        run.append(copy)
        written.add(copy.target)
    if run:
        yield run
