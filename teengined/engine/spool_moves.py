"""Threads that move contents between slots of host memory and of the spool file, so that no step waits for a disk."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from teengined.engine.spool_file import SpoolFailure, SpoolFile
from teengined.protocol.worker_messages import SlotMove

__all__ = ["MovesOver", "SpoolMoves"]

logger = logging.getLogger(__name__)

# The daemon has fewer moves under way; this many waiting means that it has lost count.
_MAX_WAITING = 1024
# Told together at most, so that a slow disk's first results are not late.
_MAX_TOLD = 16
_CLOSE_SECONDS = 10.0
_FULL = "too many moves wait for the spool"


@dataclass(slots=True, kw_only=True)
class MovesOver:
    """What one thread has to tell."""

    done: list[SlotMove] = field(default_factory=list[SlotMove])
    failed: list[SlotMove] = field(default_factory=list[SlotMove])
    problem: str = ""
    fetch_seconds: float = 0.0

    @property
    def num_moves(self) -> int:
        """How many it tells of."""
        return len(self.done) + len(self.failed)


class SpoolMoves:
    """One thread writes and one reads: a fetch, for which somebody waits, is never behind what is only put away."""

    def __init__(
        self,
        file: SpoolFile,
        rows: Sequence[memoryview],
        stage_index: int,
        on_over: Callable[[MovesOver], None],
    ) -> None:
        """`rows` are the host slots; `on_over` is called from the threads."""
        self._file = file
        self._rows = rows
        self._stage_index = stage_index
        self._on_over = on_over
        self._writes: queue.Queue[SlotMove | None] = queue.Queue(_MAX_WAITING)
        self._reads: queue.Queue[SlotMove | None] = queue.Queue(_MAX_WAITING)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(waiting,), name=f"spool-{name}", daemon=True)
            for name, waiting in (("write", self._writes), ("read", self._reads))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, moves: Sequence[SlotMove]) -> None:
        """Queue moves and return at once."""
        refused: list[SlotMove] = []
        for move in moves:
            try:
                (self._writes if move.to_disk else self._reads).put_nowait(move)
            except queue.Full:
                refused.append(move)
        if refused:
            self._on_over(MovesOver(failed=refused, problem=_FULL))

    def close(self) -> bool:
        """End the threads; what is queued is not done any more. Say whether they ended: one may hang in the kernel."""
        self._closed = True
        for waiting in (self._writes, self._reads):
            try:
                waiting.put_nowait(None)
            except queue.Full:
                continue  # The thread sees that it is closed when it takes the next.
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self, waiting: "queue.Queue[SlotMove | None]") -> None:
        over = MovesOver()
        while (move := waiting.get()) is not None and not self._closed:
            self._do(move, over)
            if waiting.empty() or over.num_moves >= _MAX_TOLD:
                self._on_over(over)
                over = MovesOver()

    def _do(self, move: SlotMove, over: MovesOver) -> None:
        start = time.perf_counter()
        try:
            over.done.append(self._move(move))
        except Exception as error:  # noqa: BLE001 - a thread that died would leave its sequences waiting
            over.failed.append(move)
            over.problem = str(error) if isinstance(error, SpoolFailure) else f"the spool failed: {error!r:.200}"
            logger.warning("%s", over.problem)
        if not move.to_disk:
            over.fetch_seconds += time.perf_counter() - start

    def _move(self, move: SlotMove) -> SlotMove:
        row = self._rows[move.host]
        if move.to_disk:
            return replace(move, digests=(self._file.write(move.disk, row),))
        self._file.read(move.disk, row, move.digests[self._stage_index])
        return move
