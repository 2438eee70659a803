"""The contract of scheduling policies, held by every installed one."""

import random

import pytest

from teengined.interfaces.policy import SchedulingPolicy, SequenceView
from teengined.interfaces.registry import PluginRegistry

POLICIES = PluginRegistry.load().scheduling_policies()


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> SchedulingPolicy:
    return POLICIES[request.param]


def random_sequences(seed: int) -> list[SequenceView]:
    rng = random.Random(seed)
    served = {owner: rng.choice([0.0, 100.0 * rng.random()]) for owner in ("a", "b")}
    return [
        SequenceView(
            id=sequence_id,
            owner=(owner := rng.choice(["a", "b"])),
            arrived_seconds=rng.choice([0.0, 1.0, rng.random()]),
            num_prompt_tokens=rng.randint(1, 100),
            num_computed_tokens=rng.randint(0, 100),
            num_emitted_tokens=rng.randint(0, 100),
            running=rng.random() < 0.5,
            priority=rng.randint(-1, 1),
            owner_served_tokens=served[owner],
        )
        for sequence_id in rng.sample(range(1000), rng.randint(0, 12))
    ]


def test_the_policy_is_known_by_its_own_name(policy: SchedulingPolicy) -> None:
    assert POLICIES[policy.name] is policy


@pytest.mark.parametrize("seed", range(50))
def test_the_order_is_a_permutation_of_the_ids(policy: SchedulingPolicy, seed: int) -> None:
    sequences = random_sequences(seed)

    assert sorted(policy.order(sequences, 2.0)) == sorted(sequence.id for sequence in sequences), f"seed {seed}"


def test_no_sequences_have_an_empty_order(policy: SchedulingPolicy) -> None:
    assert list(policy.order([], 0.0)) == []


def test_equal_sequences_get_equal_orders_and_the_input_is_left_alone(policy: SchedulingPolicy) -> None:
    sequences = random_sequences(7)
    before = list(sequences)

    assert list(policy.order(sequences, 2.0)) == list(policy.order(sequences, 2.0))
    assert sequences == before


@pytest.mark.parametrize("seed", range(20))
def test_higher_priority_is_never_behind_lower_of_the_same_owner(policy: SchedulingPolicy, seed: int) -> None:
    sequences = {sequence.id: sequence for sequence in random_sequences(seed)}
    ordered = [sequences[sequence_id] for sequence_id in policy.order(list(sequences.values()), 2.0)]

    for owner in ("a", "b"):
        priorities = [sequence.priority for sequence in ordered if sequence.owner == owner]
        assert priorities == sorted(priorities, reverse=True), f"seed {seed}"
