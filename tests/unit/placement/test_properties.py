"""What must hold for every fleet and every model, whatever the numbers."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from teengined.core.device import DeviceProfile
from teengined.core.errors import DoesNotFit
from teengined.core.plan import Objective, Plan, Tier
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan
from tests.unit.placement.fleets import PAGE, Optimal, profile, random_planning, spec

SEEDS = st.integers(min_value=0, max_value=10**9)
SLACK = 1 + 1e-9

# A plan takes milliseconds, more on a busy machine: no deadline for one example.
plans = settings(max_examples=60, deadline=None)


def seconds(inputs: PlanningInput) -> float:
    """What the optimum costs; infinite where nothing fits."""
    found = planned(inputs)
    if found is None:
        return float("inf")
    return found.seconds_per_token if found.objective is Objective.LATENCY else found.period_seconds


def planned(inputs: PlanningInput) -> Plan | None:
    try:
        return plan(inputs, Optimal())
    except DoesNotFit:
        return None


@plans
@given(SEEDS, st.integers(0, 3), st.integers(1, 30))
def test_more_memory_never_hurts(seed: int, which: int, pages: int) -> None:
    inputs = random_planning(seed, max_layers=10)
    which %= len(inputs.devices)
    devices = list(inputs.devices)
    devices[which] = replace(devices[which], memory_bytes=devices[which].memory_bytes + pages * PAGE)

    assert seconds(replace(inputs, devices=tuple(devices))) <= seconds(inputs) * SLACK


@plans
@given(SEEDS, st.floats(1, 10))
def test_a_faster_disk_never_hurts(seed: int, factor: float) -> None:
    inputs = random_planning(seed, max_layers=10)
    faster = replace(inputs.host, disk_read_bytes_per_second=inputs.host.disk_read_bytes_per_second * factor)

    assert seconds(replace(inputs, host=faster)) <= seconds(inputs) * SLACK


@plans
@given(SEEDS, st.integers(1, 40), st.floats(0.5, 5))
def test_one_more_device_never_hurts(seed: int, pages: int, speed: float) -> None:
    inputs = random_planning(seed, max_layers=10)
    added = spec(9, pages)
    profiles: Mapping[str, DeviceProfile] = {**inputs.profiles, added.id: profile(added, speed=speed)}

    more = replace(inputs, devices=(*inputs.devices, added), profiles=profiles)

    assert seconds(more) <= seconds(inputs) * SLACK


@plans
@given(SEEDS)
def test_a_longer_context_never_helps(seed: int) -> None:
    inputs = random_planning(seed, max_layers=10)

    assert seconds(inputs) <= seconds(replace(inputs, context_tokens=2 * inputs.context_tokens)) * SLACK


@plans
@given(SEEDS)
def test_every_layer_is_placed_once_and_every_unit_of_a_stage_listed_once(seed: int) -> None:
    found = planned(inputs := random_planning(seed, max_layers=12))
    if found is None:
        return

    layers = [layer for stage in found.stages for layer in range(stage.layer_start, stage.layer_end)]
    assert layers == list(range(inputs.manifest.num_layers))
    assert len({stage.device_id for stage in found.stages}) == len(found.stages)
    for stage in found.stages:
        ids = [placement.unit_id for placement in stage.units]
        assert len(ids) == len(set(ids))
    assert {unit.id for unit in inputs.manifest.units} == {u.unit_id for s in found.stages for u in s.units}


@plans
@given(SEEDS)
def test_no_device_is_over_its_budget_and_resident_bytes_are_those_of_its_units(seed: int) -> None:
    found = planned(inputs := random_planning(seed, max_layers=12))
    if found is None:
        return

    budgets = {device.id: device.memory_bytes for device in inputs.devices}
    sizes = {unit.id: unit.size_bytes for unit in inputs.manifest.units}
    for stage in found.stages:
        assert stage.total_bytes <= budgets[stage.device_id]
        assert stage.resident_bytes == sum(sizes[u.unit_id] for u in stage.units if u.tier is Tier.DEVICE)
        of_experts = 0 if stage.experts is None else stage.experts.missed_bytes_per_token
        assert (stage.ring_bytes > 0) == (stage.streamed_bytes > of_experts)


@plans
@given(SEEDS)
def test_the_bound_is_never_above_what_is_achieved(seed: int) -> None:
    found = planned(random_planning(seed, max_layers=12, max_devices=5))
    if found is None:
        return

    achieved = found.seconds_per_token if found.objective is Objective.LATENCY else found.period_seconds
    assert 0 <= found.lower_bound_seconds <= achieved
    assert 0 <= found.gap < 1


@plans
@given(SEEDS)
def test_equal_inputs_give_equal_plans(seed: int) -> None:
    assert planned(random_planning(seed)) == planned(random_planning(seed))


@plans
@given(SEEDS)
def test_host_memory_in_use_never_exceeds_the_host_tier(seed: int) -> None:
    inputs = random_planning(seed, max_layers=10)
    inputs = replace(inputs, host=replace(inputs.host, memory_bytes=7 * PAGE))
    found = planned(inputs)
    if found is None:
        return

    sizes = {unit.id: unit.size_bytes for unit in inputs.manifest.units}
    held = [sizes[unit.unit_id] for stage in found.stages for unit in stage.units if unit.tier is Tier.HOST]
    assert sum(held) <= 7 * PAGE
    assert all(u.tier is not Tier.HOST for s in found.stages if s.device_id.startswith("cpu") for u in s.units)
