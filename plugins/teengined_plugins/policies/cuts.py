"""From numbers of layers to stages, for policies that decide by numbers alone."""

import math
from collections.abc import Sequence

from teengined.core.errors import DoesNotFit
from teengined.interfaces.policy import Assignment, PlacementProblem

__all__ = ["apportion", "stages_of"]


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Return whole numbers in proportion to `weights` that add up to `total`; remainders go to the largest fractions.

    Equal weights where all are 0.
    """
    weights = weights if sum(weights) > 0 else [1.0] * len(weights)
    exact = [total * weight / sum(weights) for weight in weights]
    numbers = [math.floor(share) for share in exact]
    by_fraction = sorted(range(len(exact)), key=lambda index: (numbers[index] - exact[index], index))
    for index in by_fraction[: total - sum(numbers)]:
        numbers[index] += 1
    return numbers


def stages_of(problem: PlacementProblem, num_layers: Sequence[int], policy: str) -> tuple[Assignment, ...]:
    """Return a stage for each device that gets layers, in the problem's order of devices.

    Raises:
        DoesNotFit: a stage does not fit its device.
    """
    stages: list[Assignment] = []
    start = 0
    for device, count in enumerate(num_layers):
        if not count:
            continue
        stages.append(Assignment(device=device, layer_start=start, layer_end=start + count))
        if math.isinf(problem.stage_seconds(device, start, start + count)):
            raise DoesNotFit(
                f"policy {policy} puts layers {start} to {start + count - 1} on {problem.device_ids[device]}, "
                f"which has no room for them",
                hint="use the policy `optimal`",
            )
        start += count
    return tuple(stages)
