"""Contents that outlive a deployment: brought to disk while nothing runs, told of, and taken over from the one before.

A deployment that keeps its spool writes each full block once, when no sequence is live: who waits for an answer never
waits for that, but for one copy into host memory at most.
"""

from dataclasses import dataclass

from teengined.kvcache.kept import Snapshot, snapshot, take_over
from teengined.scheduler.events import BlocksFound, Run, SpoolReported
from teengined.scheduler.restoring import settle_moves, take_transfers
from teengined.scheduler.state import State

__all__ = ["Keeping", "note_spool", "saving_run"]


@dataclass(frozen=True, slots=True)
class Keeping:
    """What the shell may ask about it."""

    _state: State

    @property
    def is_busy(self) -> bool:
        """Whether something is on its way to disk or from there; if not, no more will be until something happens."""
        return bool(self._state.in_flight or self._state.spool.num_moving)

    @property
    def version(self) -> tuple[int, int]:
        """Another one whenever `snapshot` may have changed."""
        return self._state.spool.num_written, self._state.spool.num_lost

    def snapshot(self) -> Snapshot:
        """Return what is on disk now."""
        return snapshot(self._state.cache.tiers.index, self._state.spool)


def note_spool(state: State, event: SpoolReported | BlocksFound, now_seconds: float) -> None:
    """Take in what is below the device now."""
    if isinstance(event, SpoolReported):
        settle_moves(state, event, now_seconds)
    else:
        take_over(state.cache.tiers.index, state.spool, event.blocks)


def saving_run(state: State, step: int) -> Run | None:
    """Return a run that does nothing but bring blocks on their way to disk, or None where there is no need for one."""
    if not state.limits.spool.outlives:
        return None
    state.cache.tiers.save(state.limits.spool.max_restored_blocks)
    transfers = take_transfers(state, step)
    if not (transfers.spooled or transfers.moves):
        del state.copies[step]
        return None
    state.cache.settle()
    state.in_flight[step] = ()
    closed = tuple(state.closed)
    state.closed.clear()
    return Run(step=step, parts=(), closed=closed, spooled=transfers.spooled, moves=transfers.moves)
