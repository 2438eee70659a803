"""First come, first served: the default order of sequences."""

from collections.abc import Sequence
from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import SchedulingPolicy, SequenceView

__all__ = ["FifoScheduling", "teengine_register_scheduling_policies"]


class FifoScheduling(SchedulingPolicy):
    """Running sequences first, so that none is starved of its next token; both by arrival, then by id."""

    name: ClassVar[str] = "fifo"

    def order(self, sequences: Sequence[SequenceView], now_seconds: float) -> Sequence[int]:
        """Return the ids; the time now does not matter."""
        ranked = sorted(sequences, key=lambda sequence: (not sequence.running, sequence.arrived_seconds, sequence.id))
        return [sequence.id for sequence in ranked]


@hookimpl
def teengine_register_scheduling_policies() -> list[type[SchedulingPolicy]]:
    """Register the class."""
    return [FifoScheduling]
