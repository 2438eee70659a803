"""The solver finds what enumeration finds, and its bounds hold."""

import random
from dataclasses import replace

import pytest

from teengined.core.errors import DoesNotFit
from teengined.core.plan import Objective, Plan
from teengined.placement import solver
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan
from tests.unit.placement.brute_force import best_seconds
from tests.unit.placement.fleets import Optimal, host, manifest, planning, profile, random_planning, spec

SAME = 1e-9


def achieved(found: Plan) -> float:
    return found.seconds_per_token if found.objective is Objective.LATENCY else found.period_seconds


def planned(inputs: PlanningInput) -> Plan | None:
    try:
        return plan(inputs, Optimal())
    except DoesNotFit:
        return None


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("first_seed", range(0, 300, 50))
def test_agrees_with_enumeration_of_every_plan(first_seed: int, objective: Objective) -> None:
    for seed in range(first_seed, first_seed + 50):
        inputs = replace(random_planning(seed), objective=objective)

        found, best = planned(inputs), best_seconds(inputs)

        assert (found is None) == (best is None), f"seed {seed}"
        if found is not None and best is not None:
            assert achieved(found) == pytest.approx(best, rel=SAME), f"seed {seed}"
            assert found.gap == 0, f"seed {seed}"


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("first_seed", range(1000, 1120, 40))
def test_search_beyond_the_exact_range_stays_between_bound_and_a_small_excess(
    first_seed: int, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "_EXACT_DEVICES", 0)
    monkeypatch.setattr(solver, "_EXACT_WORK", dict.fromkeys(Objective, 0))
    for seed in range(first_seed, first_seed + 40):
        inputs = replace(random_planning(seed), objective=objective)

        found, best = planned(inputs), best_seconds(inputs)

        assert (found is None) == (best is None), f"seed {seed}"
        if found is not None and best is not None:
            assert found.lower_bound_seconds <= best * (1 + SAME), f"seed {seed}"
            assert best * (1 - SAME) <= achieved(found) <= best * (1 + SAME), f"seed {seed}"


@pytest.mark.parametrize("seed", range(40))
def test_competition_for_the_host_tier_keeps_the_bound_below_every_plan(seed: int) -> None:
    inputs = random_planning(seed, max_layers=5, max_devices=3)
    inputs = replace(inputs, host=replace(inputs.host, memory_bytes=9 * 4096))

    found, best = planned(inputs), best_seconds(inputs)

    if found is not None and best is not None:
        assert found.lower_bound_seconds <= best * (1 + SAME), f"seed {seed}"
        assert best * (1 - SAME) <= achieved(found) <= best * 1.5, f"seed {seed}"


@pytest.mark.parametrize("seed", range(200))
def test_units_that_others_hold_in_the_host_tier_keep_the_bound_below_every_plan(seed: int) -> None:
    inputs = random_planning(seed, max_layers=5, max_devices=3)
    rng = random.Random(seed)
    held = frozenset(unit.id for unit in inputs.manifest.units if rng.random() < 0.5)
    pages = rng.choice([0, 0, 3, 9])
    inputs = replace(inputs, host=replace(inputs.host, memory_bytes=pages * 4096))

    shared = replace(inputs, held_unit_ids=held)
    found, best, without = planned(shared), best_seconds(shared), planned(inputs)

    if found is not None and best is not None and without is not None:
        assert found.lower_bound_seconds <= best * (1 + SAME), f"seed {seed}"
        assert best * (1 - SAME) <= achieved(found) <= best * 1.5, f"seed {seed}"
        assert found.lower_bound_seconds <= without.lower_bound_seconds * (1 + SAME), f"seed {seed}"


@pytest.mark.parametrize("seed", range(20))
def test_permuting_devices_changes_no_cost(seed: int) -> None:
    inputs = random_planning(seed, max_devices=5, max_layers=12)
    shuffled = list(inputs.devices)
    random.Random(seed).shuffle(shuffled)

    found, permuted = planned(inputs), planned(replace(inputs, devices=tuple(shuffled)))

    assert (found is None) == (permuted is None)
    if found is not None and permuted is not None:
        assert achieved(found) == pytest.approx(achieved(permuted), rel=SAME)


def test_eight_different_devices_and_a_hundred_layers_are_solved_exactly() -> None:
    devices = [spec(index, 30 + 3 * index) for index in range(8)]
    profiles = {device.id: profile(device, speed=1 + index) for index, device in enumerate(devices)}
    inputs = planning(manifest([2] * 100), devices, profiles, host=host(disk=0.5))

    for objective in Objective:
        assert plan(replace(inputs, objective=objective), Optimal()).gap == 0


def test_thirty_two_devices_are_planned_with_a_stated_gap() -> None:
    rng = random.Random(0)
    devices = [spec(index, rng.randint(8, 40)) for index in range(32)]
    profiles = {device.id: profile(device, speed=rng.uniform(1, 5)) for device in devices}
    inputs = planning(manifest([2] * 100), devices, profiles, host=host(disk=0.5), default_latency_seconds=1e-3)

    found = plan(inputs, Optimal())

    assert 0 <= found.gap < 0.2
    assert found.lower_bound_seconds <= found.seconds_per_token


def test_identical_devices_collapse_so_that_many_are_still_exact() -> None:
    devices = [spec(index, 20) for index in range(24)]

    found = plan(planning(manifest([2] * 60), devices), Optimal())

    assert found.gap == 0
    assert not any("too many" in note for note in found.notes)
