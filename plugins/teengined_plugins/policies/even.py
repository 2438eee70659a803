"""The same number of layers on every device: the split that needs no thought. A baseline to compare with."""

from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined_plugins.policies.cuts import apportion, stages_of

__all__ = ["EvenPlacement", "teengine_register_placement_policies"]


class EvenPlacement(PlacementPolicy):
    """Splits evenly."""

    name: ClassVar[str] = "even"

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        """Return stages on devices in the given order."""
        return stages_of(problem, apportion([1.0] * len(problem.device_ids), problem.num_layers), self.name)


@hookimpl
def teengine_register_placement_policies() -> list[type[PlacementPolicy]]:
    """Register the class."""
    return [EvenPlacement]
