"""On requests as routers make them, the chosen policy is near what can be had without seeing the future."""

import itertools
from collections.abc import Iterable

import pytest

from teengined.weights.belady import BeladyBound
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_slots import ExpertSlots
from teengined.weights.policy_choice import AUTOMATIC, PolicyChoice
from tests.fakes.router_traces import RouterTraces, best_online_misses, repeating_text

NUM_EXPERTS = 8 * 64

# What routers are known for: some experts are liked, which ones changes with the topic, and tokens go on alike.
REALISTIC = (
    RouterTraces(seed=1, skew=1.2),
    RouterTraces(seed=2, skew=1.0),
    RouterTraces(seed=3, skew=1.0, topic_tokens=100),
    RouterTraces(seed=4, skew=1.2, topic_tokens=100),
    RouterTraces(seed=5, skew=1.2, topic_tokens=100, repeated=0.3),
    RouterTraces(seed=6, skew=1.0, topic_tokens=200, topic_share=0.7, repeated=0.4),
)
CASES = list(itertools.product(REALISTIC, (16, 8, 4)))


def misses_of(trace: Iterable[list[ExpertKey]], num_slots: int, policy: str = AUTOMATIC) -> int:
    choice = PolicyChoice(policy, num_slots, num_layers=8)
    slots, num_misses = ExpertSlots(choice.first_policy, num_slots), 0
    for keys in trace:
        missed = sum(visit.is_miss for visit in slots.visit(keys, in_order=False))
        better = choice.note(keys, len(keys) - missed, in_order=False)
        if better is not None:
            slots.adopt(better)
        num_misses += missed
    return num_misses


def least_misses_of(trace: Iterable[list[ExpertKey]], num_slots: int) -> int:
    bound = BeladyBound(num_slots, window=1 << 14)
    for keys in trace:
        bound.note(keys)
    return bound.num_accesses - bound.num_hits


@pytest.mark.parametrize(("traces", "part"), CASES)
def test_misses_are_within_a_fifth_of_a_cache_that_knows_every_probability(traces: RouterTraces, part: int) -> None:
    num_slots = NUM_EXPERTS // part

    assert misses_of(traces.requests(), num_slots) <= 1.2 * best_online_misses(traces, num_slots)


def test_over_all_realistic_traces_together_they_are_within_15_percent_of_it() -> None:
    ours = sum(misses_of(traces.requests(), NUM_EXPERTS // part) for traces, part in CASES)
    best = sum(best_online_misses(traces, NUM_EXPERTS // part) for traces, part in CASES)

    assert ours <= 1.15 * best


def test_where_tokens_go_on_alike_the_sticky_policy_misses_less_than_all_others() -> None:
    for traces in REALISTIC[-2:]:
        trace = traces.requests()
        sticky, *others = (misses_of(trace, NUM_EXPERTS // 8, name) for name in ("sticky", "lfu", "lru", "pinned"))

        assert sticky < 0.9 * min(others)


def test_belady_is_out_of_reach_even_for_a_cache_that_knows_every_probability() -> None:
    """So that nearness to Belady says how predictable requests are, and nearness to this cache how good a policy is."""
    for traces in REALISTIC:
        trace = traces.requests()
        assert best_online_misses(traces, NUM_EXPERTS // 4) > 1.3 * least_misses_of(trace, NUM_EXPERTS // 4)


def test_uniform_requests_are_missed_as_often_as_their_experts_are_not_cached_whoever_decides() -> None:
    traces = RouterTraces(seed=7, skew=0.0)
    trace = traces.requests()
    num_asked = sum(map(len, trace))

    for policy in (AUTOMATIC, "lru", "lfu", "pinned", "sticky"):
        assert misses_of(trace, NUM_EXPERTS // 4, policy) == pytest.approx(0.75 * num_asked, rel=0.03)
    assert best_online_misses(traces, NUM_EXPERTS // 4) == pytest.approx(0.75 * num_asked, rel=0.03)
    assert least_misses_of(trace, NUM_EXPERTS // 4) == pytest.approx(0.41 * num_asked, rel=0.03)


@pytest.mark.parametrize(("period", "part"), [(5, 4), (12, 2)])
def test_text_that_repeats_itself_in_too_few_slots_soon_has_a_policy_that_does_not_miss_everything(
    period: int, part: int
) -> None:
    trace = repeating_text(600, period)
    num_slots = NUM_EXPERTS // part

    assert misses_of(trace, num_slots, "lfu") > 6 * least_misses_of(trace, num_slots)
    assert misses_of(trace, num_slots) < 1.6 * least_misses_of(trace, num_slots)
