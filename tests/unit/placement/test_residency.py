"""The resident set is the largest that fits beside its ring: compared with every subset of small stages."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from teengined.placement.residency import (
    ExpertSizes,
    StageSizes,
    choose_resident,
    least_bytes,
    most_saved,
    ring_bytes,
    spread,
)


def stage_of(groups: list[int]) -> StageSizes:
    sizes = tuple(sorted(set(groups), reverse=True))
    nothing = np.asarray(0)
    return StageSizes(
        sizes=sizes,
        counts=tuple(np.asarray(groups.count(size)) for size in sizes),
        experts=ExpertSizes(total_bytes=nothing, least_bytes=nothing, share=1.0),
    )


def best_by_enumeration(groups: list[int], available: int, ring_slots: int, limit: int | None) -> int:
    """The most resident bytes over all subsets that fit with the ring that they need; -1 where none does."""
    best = -1
    for kept in itertools.product([False, True], repeat=len(groups)):
        resident = sum(size for size, keep in zip(groups, kept, strict=True) if keep)
        ring = ring_bytes([size for size, keep in zip(groups, kept, strict=True) if not keep], ring_slots)
        if resident + ring <= available and (limit is None or resident <= limit):
            best = max(best, resident)
    return best


@pytest.mark.parametrize("seed", range(200))
def test_no_subset_of_groups_keeps_more_bytes_than_the_choice(seed: int) -> None:
    rng = random.Random(seed)
    groups = [rng.choice([2, 3, 7]) for _ in range(rng.randint(1, 8))]
    available, ring_slots = rng.randint(-2, sum(groups) + 3), rng.choice([2, 3, 4])

    choice = choose_resident(stage_of(groups), np.asarray(available), ring_slots=ring_slots)

    assert choice.exact
    assert int(choice.resident_bytes) == best_by_enumeration(groups, available, ring_slots, None), f"seed {seed}"


@pytest.mark.parametrize("seed", range(200))
def test_with_a_limit_no_more_stays_and_equal_groups_are_still_chosen_best(seed: int) -> None:
    rng = random.Random(seed)
    groups = [4] * rng.randint(1, 8)
    available, ring_slots = rng.randint(0, sum(groups) + 3), rng.choice([2, 3, 4])
    limit = rng.randint(0, sum(groups))

    choice = choose_resident(stage_of(groups), np.asarray(available), ring_slots=ring_slots, limit=np.asarray(limit))

    assert int(choice.resident_bytes) == best_by_enumeration(groups, available, ring_slots, limit), f"seed {seed}"


@pytest.mark.parametrize("seed", range(200))
def test_least_bytes_is_the_smallest_room_in_which_anything_fits(seed: int) -> None:
    rng = random.Random(seed)
    groups = [rng.choice([2, 3, 9]) for _ in range(rng.randint(1, 8))]
    stage, ring_slots = stage_of(groups), rng.choice([2, 3])

    least = int(least_bytes(stage, ring_slots=ring_slots))

    assert int(choose_resident(stage, np.asarray(least), ring_slots=ring_slots).resident_bytes) >= 0, f"seed {seed}"
    assert int(choose_resident(stage, np.asarray(least - 1), ring_slots=ring_slots).resident_bytes) < 0, f"seed {seed}"


@pytest.mark.parametrize("num_sizes", [2, 12])
def test_most_saved_is_never_below_the_choice_even_where_that_is_not_exact(num_sizes: int) -> None:
    rng = random.Random(num_sizes)
    groups = [rng.randint(20, 20 + num_sizes) for _ in range(30)]
    stage = stage_of(groups)

    for available in range(0, sum(groups), 11):
        room = np.asarray(available)
        kept = int(choose_resident(stage, room, ring_slots=3).resident_bytes)
        assert kept <= int(most_saved(stage, room, ring_slots=3)) <= available or kept == -1


def saved_by_enumeration(groups: list[int], experts: ExpertSizes, available: int, ring_slots: int) -> float:
    """The most bytes of a token that need not move over all subsets of dense groups; -1 where none fits."""
    best = -1.0
    for kept in itertools.product([False, True], repeat=len(groups)):
        resident = sum(size for size, keep in zip(groups, kept, strict=True) if keep)
        ring = ring_bytes([size for size, keep in zip(groups, kept, strict=True) if not keep], ring_slots)
        room = available - resident - ring
        if room >= int(experts.least_bytes):
            best = max(best, resident + experts.share * min(room, int(experts.total_bytes)))
    return best


@pytest.mark.parametrize("seed", range(200))
def test_beside_experts_no_subset_of_dense_groups_saves_more(seed: int) -> None:
    rng = random.Random(seed)
    groups = [rng.choice([2, 3, 7]) for _ in range(rng.randint(1, 8))]
    total = rng.randint(2, 40)
    experts = ExpertSizes(
        total_bytes=np.asarray(total), least_bytes=np.asarray(rng.randint(1, min(6, total))), share=rng.random()
    )
    stage = replace(stage_of(groups), experts=experts)
    available, ring_slots = rng.randint(-2, sum(groups) + total + 3), rng.choice([2, 3, 4])
    best = saved_by_enumeration(groups, experts, available, ring_slots)

    choice = choose_resident(stage, np.asarray(available), ring_slots=ring_slots)

    assert float(choice.saved_bytes) == pytest.approx(best), f"seed {seed}"
    relaxed = float(most_saved(stage, np.asarray(available), ring_slots=ring_slots))
    assert best <= relaxed + 1e-9, f"seed {seed}"
    least = int(least_bytes(stage, ring_slots=ring_slots))
    assert (available >= least) == (best >= 0), f"seed {seed}"


def test_many_sizes_are_chosen_greedily_and_said_to_be_inexact() -> None:
    stage = stage_of(list(range(50, 90)))

    choice = choose_resident(stage, np.asarray(1000), ring_slots=3)

    assert not choice.exact
    assert 1000 - 3 * 89 - 89 < int(choice.resident_bytes) <= 1000


def test_a_ring_has_no_more_slots_than_there_are_streamed_groups() -> None:
    assert ring_bytes([5, 3], 3) == 10
    assert ring_bytes([5, 3, 3, 3], 3) == 15
    assert ring_bytes([], 3) == 0


def test_streamed_groups_are_spread_evenly() -> None:
    assert spread(6, 3) == [False, True, False, True, False, True]
    assert sum(spread(7, 3)) == 3
    assert spread(4, 0) == [False] * 4
    assert spread(4, 4) == [True] * 4
