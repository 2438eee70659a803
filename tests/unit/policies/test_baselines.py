"""Each baseline cuts the way it is known for."""

from collections.abc import Callable

import pytest

from teengined.core.errors import DoesNotFit
from teengined.core.plan import Objective
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined_plugins.policies.even import EvenPlacement
from teengined_plugins.policies.first_fit import FirstFitPlacement
from teengined_plugins.policies.optimal import OptimalPlacement
from teengined_plugins.policies.proportional import ProportionalPlacement


class SmallProblem(PlacementProblem):
    """Layers of one byte; a stage costs a second for each, and is impossible where the test says so."""

    def __init__(
        self, memory: tuple[int, ...], layers: int, impossible: Callable[[int], bool] = lambda _: False
    ) -> None:
        self.num_layers = layers
        self.device_ids = tuple(f"cpu:{index}" for index in range(len(memory)))
        self.memory_bytes = memory
        self.layer_bytes = (1,) * layers
        self.objective = Objective.LATENCY
        self._impossible = impossible

    def stage_seconds(self, device: int, layer_start: int, layer_end: int) -> float:
        return float("inf") if self._impossible(device) else float(layer_end - layer_start)

    def hop_seconds(self, source: int, target: int) -> float:
        return 0.0

    def exact_assignment(self) -> tuple[Assignment, ...]:
        return (Assignment(device=0, layer_start=0, layer_end=self.num_layers),)


def cut(policy: PlacementPolicy, problem: PlacementProblem) -> list[tuple[int, int, int]]:
    return [(stage.device, stage.layer_start, stage.layer_end) for stage in policy.place(problem)]


def test_even_gives_every_device_the_same() -> None:
    assert cut(EvenPlacement(), SmallProblem((1, 100), 6)) == [(0, 0, 3), (1, 3, 6)]


def test_even_leaves_devices_out_when_there_are_more_than_layers() -> None:
    assert cut(EvenPlacement(), SmallProblem((1, 1, 1), 2)) == [(0, 0, 1), (1, 1, 2)]


def test_proportional_follows_memory_and_leaves_out_a_device_without_any() -> None:
    assert cut(ProportionalPlacement(), SmallProblem((2, 0, 4), 6)) == [(0, 0, 2), (2, 2, 6)]


def test_first_fit_fills_in_order_and_leaves_the_rest_to_the_last() -> None:
    assert cut(FirstFitPlacement(), SmallProblem((2, 3, 1), 9)) == [(0, 0, 2), (1, 2, 5), (2, 5, 9)]


def test_first_fit_stops_at_the_device_that_holds_the_end() -> None:
    assert cut(FirstFitPlacement(), SmallProblem((9, 9), 4)) == [(0, 0, 4)]


def test_optimal_is_the_solvers_answer() -> None:
    assert cut(OptimalPlacement(), SmallProblem((1, 1), 4)) == [(0, 0, 4)]


@pytest.mark.parametrize("policy", [EvenPlacement(), ProportionalPlacement(), FirstFitPlacement()])
def test_a_stage_that_cannot_run_is_told_with_the_policy_and_the_device(policy: PlacementPolicy) -> None:
    problem = SmallProblem((2, 2), 4, impossible=lambda device: device == 1)

    with pytest.raises(DoesNotFit, match=rf"{policy.name} puts layers 2 to 3 on cpu:1"):
        policy.place(problem)
