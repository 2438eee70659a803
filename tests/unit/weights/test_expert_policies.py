"""Policies hold what they should, and none hits more than the best of all caches on the same requests."""

import itertools
import random
from collections.abc import Sequence

import pytest

from teengined.weights.belady import BeladyBound
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_policies import POLICIES
from teengined.weights.expert_slots import ExpertSlots

Trace = list[list[ExpertKey]]


def slots_of(policy: str, num_slots: int, half_life: float = 64.0) -> ExpertSlots:
    return ExpertSlots(POLICIES[policy](num_slots, half_life=half_life), num_slots)


def random_trace(rng: random.Random, *, num_layers: int, num_experts: int, num_tokens: int) -> Trace:
    """Each layer in turn asks for some experts, low ones more often."""
    weights = [1 / (index + 1) for index in range(num_experts)]
    return [
        [(layer, expert) for expert in sorted(set(rng.choices(range(num_experts), weights, k=rng.randint(1, 4))))]
        for _ in range(num_tokens)
        for layer in range(num_layers)
    ]


def skewed_trace(seed: int, *, num_layers: int, num_experts: int, num_asked: int, num_tokens: int) -> Trace:
    """Zipf's law within each layer, in an order of its own."""
    rng = random.Random(seed)
    orders = [rng.sample(range(num_experts), num_experts) for _ in range(num_layers)]
    weights = [1 / (rank + 1) ** 1.2 for rank in range(num_experts)]
    trace: Trace = []
    for _ in range(num_tokens):
        for layer, order in enumerate(orders):
            asked: set[int] = set()
            while len(asked) < num_asked:
                asked.add(order[rng.choices(range(num_experts), weights)[0]])
            trace.append([(layer, expert) for expert in sorted(asked)])
    return trace


def hits_of(slots: ExpertSlots, trace: Trace, *, in_order: bool = False) -> int:
    return sum(not visit.is_miss for keys in trace for visit in slots.visit(keys, in_order=in_order))


def best_hits_of(capacity: int, trace: Trace, window: int = 1 << 12) -> int:
    bound = BeladyBound(capacity, window=window)
    for keys in trace:
        bound.note(keys)
    return bound.num_hits


def best_by_enumeration(capacity: int, trace: Trace) -> int:
    """The most hits of any cache that keeps, after each request, any `capacity` of what it held and saw."""
    states: dict[frozenset[ExpertKey], int] = {frozenset(): 0}
    for keys in trace:
        after: dict[frozenset[ExpertKey], int] = {}
        for held, hits in states.items():
            now = hits + len(held & set(keys))
            for kept in kept_after(held | set(keys), capacity):
                after[kept] = max(after.get(kept, 0), now)
        states = after
    return max(states.values())


def kept_after(seen: Sequence[ExpertKey] | frozenset[ExpertKey], capacity: int) -> list[frozenset[ExpertKey]]:
    return [frozenset(kept) for kept in itertools.combinations(sorted(seen), min(capacity, len(seen)))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_no_slot_is_given_twice_and_none_taken_from_who_still_needs_it(policy: str, in_order: bool, seed: int) -> None:
    rng = random.Random(seed)
    num_slots = rng.randint(1, 12)
    slots = slots_of(policy, num_slots)
    where: dict[int, ExpertKey] = {}
    for keys in random_trace(rng, num_layers=3, num_experts=8, num_tokens=40):
        visits = slots.visit(keys, in_order=in_order)
        assert sorted(visit.key for visit in visits) == keys, f"seed {seed}"
        computed: set[ExpertKey] = set()
        for visit in visits:
            assert 0 <= visit.slot < num_slots
            if visit.is_miss:
                assert where.get(visit.slot) != visit.key, f"seed {seed}"
                assert visit.after is None or visit.after.key in computed, f"seed {seed}"
                where[visit.slot] = visit.key
            assert where[visit.slot] == visit.key, f"seed {seed}"
            computed.add(visit.key)
        assert len(slots) <= num_slots
        assert {key: slots.slot_of(key) for key in slots.held}.items() <= {k: s for s, k in where.items()}.items()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(30))
def test_what_is_protected_is_never_given_up(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.randint(2, 10)
    each = POLICIES[policy](capacity, half_life=16)
    held = [(0, expert) for expert in range(capacity)]
    for key in held:
        each.touch(key)
        each.add(key)
    for _ in range(50):
        each.next_request()
        each.touch(rng.choice(held))
        protected = set(rng.sample(held, rng.randint(0, capacity)))
        victim = each.victim(protected)
        assert (victim is None) == (len(protected) == capacity), f"seed {seed}"
        assert victim not in protected, f"seed {seed}"


@pytest.mark.parametrize("seed", range(40))
def test_belady_is_what_trying_everything_finds(seed: int) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng, num_layers=2, num_experts=4, num_tokens=5)
    capacity = rng.randint(1, 4)

    assert best_hits_of(capacity, trace) == best_by_enumeration(capacity, trace), f"seed {seed}"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(20))
def test_no_policy_hits_more_than_belady(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng, num_layers=rng.randint(1, 5), num_experts=rng.randint(2, 12), num_tokens=60)
    capacity = rng.randint(1, 20)

    best = best_hits_of(capacity, trace)

    assert hits_of(slots_of(policy, capacity), trace) <= best, f"seed {seed}"
    assert hits_of(slots_of(policy, capacity), trace, in_order=True) <= best, f"seed {seed}"


def test_belady_forgets_what_comes_back_after_its_window_and_stays_bounded() -> None:
    often, seldom = (0, 1), (0, 2)
    trace = [[often] for _ in range(100)]
    for index in range(0, 100, 25):
        trace[index] = [often, seldom]

    assert best_hits_of(2, trace, window=64) == 99 + 3
    assert best_hits_of(2, trace, window=8) == 99


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_skewed_requests_the_most_frequent_are_within_15_percent_of_belady(seed: int) -> None:
    trace = skewed_trace(seed, num_layers=8, num_experts=32, num_asked=4, num_tokens=300)
    capacity = 8 * 32 // 4

    assert hits_of(slots_of("lfu", capacity, half_life=8 * 64), trace) >= 0.85 * best_hits_of(capacity, trace)


def test_a_cycle_through_more_than_fits_leaves_lru_nothing_and_the_others_something() -> None:
    trace: Trace = [[(layer, 0)] for _ in range(50) for layer in range(10)]

    assert hits_of(slots_of("lru", 8), trace) == 0
    assert hits_of(slots_of("pinned", 8), trace) > 200


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_takes_over_knows_what_it_learned_and_holds_what_is_there(policy: str) -> None:
    shadow = slots_of(policy, 4)
    for _ in range(20):
        shadow.visit([(0, 1), (0, 2)], in_order=False)
    real = slots_of("lru", 4)
    real.visit([(0, 1), (0, 5), (0, 6), (0, 7)], in_order=False)

    real.adopt(shadow.policy)
    real.visit([(0, 9)], in_order=False)
    real.visit([(0, 8)], in_order=False)

    assert len(real) == 4
    assert (0, 1) in real


@pytest.mark.parametrize("policy", ["lfu", "pinned"])
def test_frequencies_fade(policy: str) -> None:
    slots = slots_of(policy, 8, half_life=4)
    old, new = [(0, e) for e in range(6)], [(1, e) for e in range(6)]
    for _ in range(50):
        slots.visit(old, in_order=False)
    for _ in range(50):
        slots.visit(new, in_order=False)

    assert sum(key in slots for key in new) == 6


def test_scores_that_grow_without_end_are_scaled_down_and_keep_their_order() -> None:
    slots = slots_of("lfu", 2, half_life=1)
    for turn in range(1500):
        slots.visit([(0, turn % 2)], in_order=False)
    slots.visit([(0, 1)], in_order=False)

    slots.visit([(0, 5)], in_order=False)

    assert (0, 1) in slots
    assert (0, 0) not in slots


def test_a_cache_without_a_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 slot"):
        slots_of("lru", 0)
