"""Who gives up its blocks when there are too few: the last in the policy's order among those that can."""

from teengined.scheduler.ordering import Ordering
from teengined.scheduler.sequence import Sequence
from teengined.scheduler.state import State

__all__ = ["Preemption"]


class Preemption:
    """Makes room during the composition of one run.

    A sequence is preempted only for one before it in the policy's order, and never while a step has it. So the first in
    order gets what it needs, at the latest when the steps in flight are over, and alone it fits: it always goes on. One
    for which nobody gives way keeps its blocks and waits.
    """

    def __init__(self, state: State, ordering: Ordering, now_seconds: float) -> None:
        """The policy is asked only when room must be made."""
        self._state = state
        self._ordering = ordering
        self._now_seconds = now_seconds
        self._ordered: list[Sequence] | None = None

    def make_room(self, asking: Sequence, num_blocks: int) -> None:
        """Preempt sequences after `asking`, the last first, until so many blocks are available or none is left."""
        pool = self._state.cache.pool
        if self._ordered is None:
            self._ordered = self._ordering.sort(self._state.running.values())
        ordered = self._ordered
        for index in range(len(ordered) - 1, -1, -1):
            if pool.num_available >= num_blocks or ordered[index] is asking:
                return
            if ordered[index].is_available:
                self._state.preempt(ordered[index], self._now_seconds)
