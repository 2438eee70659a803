"""The contract of placement policies, held by every installed one."""

import pytest

from teengined.core.errors import DoesNotFit
from teengined.core.plan import Objective
from teengined.interfaces.policy import PlacementPolicy
from teengined.interfaces.registry import PluginRegistry
from teengined.placement.costs import cost_model_of
from teengined.placement.planner import plan
from teengined.placement.problem import DeploymentProblem
from tests.unit.placement.fleets import manifest, planning, random_planning, spec

POLICIES = PluginRegistry.load().placement_policies()


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> PlacementPolicy:
    return POLICIES[request.param]


def test_the_policy_is_known_by_its_own_name(policy: PlacementPolicy) -> None:
    assert POLICIES[policy.name] is policy


@pytest.mark.parametrize("objective", list(Objective))
def test_stages_cover_every_layer_once_in_order_with_each_device_at_most_once(
    policy: PlacementPolicy, objective: Objective
) -> None:
    devices = [spec(0, 30), spec(1, 60), spec(2, 9)]
    problem = DeploymentProblem(cost_model_of(planning(manifest([2] * 11), devices, objective=objective)))

    stages = policy.place(problem)

    assert [layer for stage in stages for layer in range(stage.layer_start, stage.layer_end)] == list(range(11))
    assert len({stage.device for stage in stages}) == len(stages)
    assert all(stage.layer_end > stage.layer_start for stage in stages)


def test_equal_problems_get_equal_answers(policy: PlacementPolicy) -> None:
    inputs = planning(manifest([2] * 7), [spec(0, 30), spec(1, 20)])

    first = policy.place(DeploymentProblem(cost_model_of(inputs)))
    second = policy.place(DeploymentProblem(cost_model_of(inputs)))

    assert tuple(first) == tuple(second)


def test_fewer_layers_than_devices_leaves_devices_out(policy: PlacementPolicy) -> None:
    inputs = planning(manifest([2]), [spec(index, 30) for index in range(3)])

    found = plan(inputs, policy)

    assert len(found.stages) == 1
    assert len(found.unused_device_ids) == 2


def test_stages_run_or_the_policy_says_that_it_does_not_fit(policy: PlacementPolicy) -> None:
    for seed in range(60):
        try:
            found = plan(random_planning(seed), policy)
        except DoesNotFit:
            continue
        assert found.lower_bound_seconds * (1 - 1e-9) <= max(found.seconds_per_token, found.period_seconds)
        assert found.policy == policy.name, f"seed {seed}"
