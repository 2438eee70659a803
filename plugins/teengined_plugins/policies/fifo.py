"""First come, first served, whoever asks: for a host whose users need no protection from each other."""

from collections.abc import Sequence
from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import SchedulingPolicy, SequenceView

__all__ = ["FifoScheduling", "teengine_register_scheduling_policies"]


class FifoScheduling(SchedulingPolicy):
    """Higher priority first; within it what runs before what waits, so that no work is lost, both by arrival and id.

    Owners are not told apart: any client's high priority goes before, and takes blocks from, everyone else's work.
    """

    name: ClassVar[str] = "fifo"

    def order(self, sequences: Sequence[SequenceView], now_seconds: float) -> Sequence[int]:
        """Return the ids; the time now does not matter."""
        ranked = sorted((-view.priority, not view.running, view.arrived_seconds, view.id) for view in sequences)
        return [key[-1] for key in ranked]


@hookimpl
def teengine_register_scheduling_policies() -> list[type[SchedulingPolicy]]:
    """Register the class."""
    return [FifoScheduling]
