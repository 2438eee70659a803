"""Every plan there is, by enumeration: what the solver is held to. Shares no code with it but the stage builder."""

import itertools
from collections.abc import Iterator

from teengined.core.plan import Objective
from teengined.interfaces.policy import Assignment
from teengined.placement.costs import cost_model_of
from teengined.placement.inputs import PlanningInput
from teengined.placement.stages import build_stages, latency_seconds, period_seconds


def every_assignment(num_devices: int, num_layers: int) -> Iterator[tuple[Assignment, ...]]:
    for num_stages in range(1, min(num_devices, num_layers) + 1):
        for order in itertools.permutations(range(num_devices), num_stages):
            for cuts in itertools.combinations(range(1, num_layers), num_stages - 1):
                ends = (0, *cuts, num_layers)
                yield tuple(
                    Assignment(device=device, layer_start=ends[i], layer_end=ends[i + 1])
                    for i, device in enumerate(order)
                )


def best_seconds(planning: PlanningInput) -> float | None:
    """The least latency or period of any plan, or None where none fits."""
    model = cost_model_of(planning)
    cost = latency_seconds if planning.objective is Objective.LATENCY else period_seconds
    found = [
        cost(stages)
        for assignment in every_assignment(len(planning.devices), model.num_layers)
        if (stages := build_stages(model, assignment)) is not None
    ]
    return min(found, default=None)
