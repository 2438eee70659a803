"""Fills one device after the other and leaves the rest to the last: accelerate's way. A baseline to compare with."""

from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined_plugins.policies.cuts import stages_of

__all__ = ["FirstFitPlacement", "teengine_register_placement_policies"]


class FirstFitPlacement(PlacementPolicy):
    """Fills by memory, in the given order of devices."""

    name: ClassVar[str] = "first-fit"

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        """Return stages; layers that fit nowhere go to the last device, which streams them."""
        num_layers: list[int] = []
        layer = 0
        for memory_bytes in problem.memory_bytes:
            start, left = layer, memory_bytes
            while layer < problem.num_layers and problem.layer_bytes[layer] <= left:
                left -= problem.layer_bytes[layer]
                layer += 1
            num_layers.append(layer - start)
        num_layers[-1] += problem.num_layers - layer
        return stages_of(problem, num_layers, self.name)


@hookimpl
def teengine_register_placement_policies() -> list[type[PlacementPolicy]]:
    """Register the class."""
    return [FirstFitPlacement]
