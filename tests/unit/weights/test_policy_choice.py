"""The policy that would have read least decides, and the figures say how good that was."""

import pytest

from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_slots import ExpertSlots
from teengined.weights.policy_choice import PolicyChoice

Trace = list[list[ExpertKey]]


def run(choice: PolicyChoice, trace: Trace, num_slots: int) -> ExpertSlots:
    """Run the cache itself beside its choice, as the bank does."""
    slots = ExpertSlots(choice.first_policy, num_slots)
    for keys in trace:
        num_hits = sum(not visit.is_miss for visit in slots.visit(keys, in_order=False))
        better = choice.note(keys, num_hits, in_order=False)
        if better is not None:
            slots.adopt(better)
    return slots


def drifting(num_tokens: int) -> Trace:
    """Six experts are used for thirty tokens, three at a time, and never again: only what is recent counts."""
    return [[(0, 6 * (token // 30) + 3 * (token % 2) + expert) for expert in range(3)] for token in range(num_tokens)]


def test_recent_use_decides_where_nothing_else_predicts() -> None:
    choice = PolicyChoice("auto", 7, num_layers=1)

    run(choice, drifting(3000), 7)

    assert choice.name == "lru"
    assert choice.report.policy == "lru"


def test_frequency_decides_where_layers_go_round() -> None:
    choice = PolicyChoice("auto", 8, num_layers=10)

    run(choice, [[(layer, 0)] for _ in range(800) for layer in range(10)], 8)

    assert choice.name in ("lfu", "pinned")


@pytest.mark.parametrize("policy", ["lru", "lfu", "pinned", "sticky"])
def test_a_named_policy_is_never_left_and_its_simulation_is_the_cache_itself(policy: str) -> None:
    choice = PolicyChoice(policy, 7, num_layers=1)

    run(choice, drifting(2000), 7)
    report = choice.report

    assert report.policy == policy
    assert report.num_accesses == 6000
    assert report.num_hits == report.num_simulated_hits <= report.num_best_hits


def test_after_a_change_of_policy_the_simulation_still_says_what_the_cache_does() -> None:
    choice = PolicyChoice("auto", 7, num_layers=1)

    run(choice, drifting(6000), 7)
    report = choice.report

    assert choice.name == "lru"
    misses, simulated = report.num_accesses - report.num_hits, report.num_accesses - report.num_simulated_hits
    assert abs(misses - simulated) <= 0.05 * simulated
