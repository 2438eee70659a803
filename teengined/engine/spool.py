"""One stage's contents of KV blocks below the device: slots in host memory, and by way of them a file.

Suffixes: S slots, B bytes of a slot.
"""

import logging
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from teengined.core.errors import DriverError
from teengined.core.model import ALIGNMENT_BYTES
from teengined.engine.spool_file import SpoolFailure, SpoolFile
from teengined.engine.spool_moves import MovesOver, SpoolMoves
from teengined.models.kv import KVPool
from teengined.protocol.worker_messages import OpenStage, RunStep, SlotCopy, SlotMove, SpoolReport

__all__ = ["StageSpool"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arena:
    """Host memory for slots, page aligned; pages come when they are touched and go with the mapping."""

    mapping: mmap.mmap
    rows_SB: torch.Tensor
    views: tuple[memoryview, ...]


class StageSpool:
    """Obeys the `spooled`, `restored` and `moves` of steps, on the stage's thread."""

    def __init__(self, order: OpenStage, pool: KVPool, report: Callable[[SpoolReport], None]) -> None:
        """Map the slots and open the file; a file that cannot be opened makes every move fail, and nothing else.

        Raises:
            DriverError: the system has no address space for the slots.
        """
        self._order = order
        self._pool = pool
        self._report = report
        self._file: SpoolFile | None = None
        self._moves: SpoolMoves | None = None
        self._problem = "this stage has no spool file"
        self._arena = _map_slots(order.num_host_slots, _whole_pages(pool.block_bytes))
        if order.num_disk_slots and order.num_host_slots and order.spool_path:
            self._open_file()

    def _open_file(self) -> None:
        try:
            self._file = SpoolFile(Path(self._order.spool_path), _whole_pages(self._pool.block_bytes))
        except SpoolFailure as error:
            self._problem = str(error)
            logger.warning("%s", error)
            return
        self._moves = SpoolMoves(self._file, self._arena.views, self._order.stage.index, self._tell)

    def obey(self, step: RunStep) -> float:
        """Copy what a step spools and restores, begin its moves, and return the seconds that the copies took.

        Raises:
            DriverError: a copy went wrong: what later steps build on is not there.
        """
        if not (step.spooled or step.restored or step.moves):
            return 0.0
        start = time.perf_counter()
        try:
            self._store(step.spooled)
            self._restore(step.restored)
        except (RuntimeError, IndexError) as error:
            raise DriverError(f"KV blocks could not be copied in step {step.step}: {error}") from error
        seconds = time.perf_counter() - start
        self._move(step.moves)
        return seconds if step.spooled or step.restored else 0.0

    def close(self) -> None:
        """End the moves and give the memory back."""
        ended = self._moves is None or self._moves.close()
        if ended and self._file is not None:
            self._file.close()
        self._moves = self._file = None

    def _store(self, copies: Sequence[SlotCopy]) -> None:
        if copies:
            blocks, slots = [copy.block for copy in copies], [copy.slot for copy in copies]
            self._pool.save(blocks, self._arena.rows_SB, slots)

    def _restore(self, copies: Sequence[SlotCopy]) -> None:
        if not copies:
            return
        blocks, slots = [copy.block for copy in copies], [copy.slot for copy in copies]
        self._pool.load(blocks, self._arena.rows_SB, slots)
        size = self._pool.shape.block_tokens
        self._pool.clear_tails({copy.block: copy.num_tokens for copy in copies if copy.num_tokens < size})

    def _move(self, moves: Sequence[SlotMove]) -> None:
        if not moves:
            return
        if self._moves is not None:
            self._moves.submit(moves)
        else:
            self._tell(MovesOver(failed=list(moves), problem=self._problem))

    def _tell(self, over: MovesOver) -> None:
        self._report(
            SpoolReport(
                deployment_id=self._order.deployment_id,
                stage_index=self._order.stage.index,
                done=tuple(over.done),
                failed=tuple(over.failed),
                problem=over.problem,
                fetch_seconds=over.fetch_seconds,
            )
        )


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _map_slots(num_slots: int, slot_bytes: int) -> _Arena:
    try:
        mapping = mmap.mmap(-1, max(1, num_slots * slot_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise DriverError(f"the system has no {num_slots * slot_bytes} bytes for the KV spool: {error}") from error
    view = memoryview(mapping)
    rows = torch.frombuffer(mapping, dtype=torch.uint8)[: num_slots * slot_bytes].view(num_slots, slot_bytes)
    views = tuple(view[slot * slot_bytes : (slot + 1) * slot_bytes] for slot in range(num_slots))
    return _Arena(mapping=mapping, rows_SB=rows, views=views)
