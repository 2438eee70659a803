"""Fair shares: who was served the fewest tokens goes next, whoever asks for how much."""

from collections.abc import Sequence
from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import SchedulingPolicy, SequenceView

__all__ = ["FairScheduling", "teengine_register_scheduling_policies"]


class FairScheduling(SchedulingPolicy):
    """The owner that is owed most first; of one owner by priority, then what runs already, then by arrival.

    One client with a thousand requests then delays another's by about as much as a client with one would, whatever
    priority it gives them: priorities rank an owner's own work. All of one owner goes before all of another, so that
    blocks are taken only from who was served no less. Every owner weighs the same. Decoding needs no place here: a step
    takes a token of every sequence that decodes before it looks at prompts.
    """

    name: ClassVar[str] = "fair"

    def order(self, sequences: Sequence[SequenceView], now_seconds: float) -> Sequence[int]:
        """Return the ids; the time now does not matter."""
        ranked = sorted(
            sequences,
            key=lambda view: (
                view.owner_served_tokens,
                view.owner,
                -view.priority,
                not view.running,
                view.arrived_seconds,
                view.id,
            ),
        )
        return [view.id for view in ranked]


@hookimpl
def teengine_register_scheduling_policies() -> list[type[SchedulingPolicy]]:
    """Register the class."""
    return [FairScheduling]
