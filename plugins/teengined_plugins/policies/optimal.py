"""The plan with the least time for the objective: the default."""

from typing import ClassVar

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem

__all__ = ["OptimalPlacement", "teengine_register_placement_policies"]


class OptimalPlacement(PlacementPolicy):
    """Takes the solver's answer."""

    name: ClassVar[str] = "optimal"

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        """Return the solver's assignment."""
        return problem.exact_assignment()


@hookimpl
def teengine_register_placement_policies() -> list[type[PlacementPolicy]]:
    """Register the class."""
    return [OptimalPlacement]
