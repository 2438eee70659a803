"""Layers in proportion to the memory of each device: what llama.cpp and exo do. A baseline to compare with."""

from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined_plugins.policies.cuts import apportion, stages_of

__all__ = ["ProportionalPlacement", "teengine_register_placement_policies"]


class ProportionalPlacement(PlacementPolicy):
    """Splits by memory."""

    name: ClassVar[str] = "proportional"

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        """Return stages on devices in the given order."""
        return stages_of(problem, apportion(problem.memory_bytes, problem.num_layers), self.name)


@hookimpl
def teengine_register_placement_policies() -> list[type[PlacementPolicy]]:
    """Register the class."""
    return [ProportionalPlacement]
