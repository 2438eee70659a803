"""Figures of expert caches follow what the stages report, and begin with what the plan expects."""

from dataclasses import replace

import pytest

from teengined.core.plan import ExpertCache, StageExperts
from teengined.protocol.worker_messages import ExpertCounts, StepDone
from teengined.service.expert_meter import ExpertMeter
from teengined.service.speed import SpeedMeter
from tests.unit.service.test_speed import done, meter

PLANNED = StageExperts(
    caches=(ExpertCache(slot_bytes=100, num_slots=4, num_experts=16),),
    num_bytes=1600,
    bytes_per_token=400,
    hit_rate=0.25,
)


def speed_with(*experts: StageExperts | None, streamed_bytes: int = 1300) -> SpeedMeter:
    plan = meter(compute_seconds=0.1, streamed_bytes=streamed_bytes, disk=1000.0).plan
    stages = tuple(replace(plan.stages[0], index=index, experts=each) for index, each in enumerate(experts))
    return SpeedMeter(plan=replace(plan, stages=stages), disk_bytes_per_second=1000.0)


def counts(asked: int, hits: int, read_bytes: int, best: int = 0, policy: str = "lfu") -> ExpertCounts:
    return ExpertCounts(
        policy=policy,
        num_asked=asked,
        num_hits=hits,
        num_best_hits=best,
        num_simulated_hits=hits,
        read_bytes=read_bytes,
    )


def report(stage: int, experts: ExpertCounts | None) -> StepDone:
    return replace(done(), stage_index=stage, experts=experts)


def figures(experts: ExpertMeter):
    found = experts.describe()
    assert found is not None
    return found


def test_nothing_is_told_where_no_expert_is_cached() -> None:
    assert speed_with(None).experts.describe() is None


def test_before_the_first_step_the_plan_is_told() -> None:
    told = figures(speed_with(PLANNED, None, PLANNED).experts)

    assert (told.num_slots, told.num_experts, told.expected_hit_rate) == (8, 32, pytest.approx(0.25))
    assert told.bytes_per_token == 600
    assert (told.policies, told.hit_rate) == ((), 0.0)


def test_rates_are_of_all_stages_together() -> None:
    speed = speed_with(PLANNED, PLANNED)

    speed.learn((report(0, counts(100, 20, 0, best=50)), report(1, counts(300, 60, 0, best=150, policy="lru"))), 7)
    told = figures(speed.experts)

    assert told.policies == ("lfu", "lru")
    assert told.hit_rate == told.simulated_hit_rate == pytest.approx(0.2)
    assert told.best_hit_rate == pytest.approx(0.5)


def test_guesses_are_told_as_shares_of_what_was_missed_and_of_what_was_guessed_and_not_counted_among_the_bytes() -> (
    None
):
    speed = speed_with(PLANNED)
    speed.learn((report(0, counts(0, 0, 0)),), 1)
    before = figures(speed.experts).bytes_per_token
    guesses = replace(
        counts(100, 20, 0), num_guessed=50, num_guessed_right=40, wrong_guess_bytes=1 << 30, is_guessing=True
    )

    speed.learn((report(0, guesses),), 1)
    told = figures(speed.experts)

    assert told.guessed_rate == pytest.approx(0.5)
    assert told.guess_right_rate == pytest.approx(0.8)
    assert told.guessing_stages == (True,)
    assert told.bytes_per_token <= before


def test_what_is_recent_weighs_more_and_a_stage_that_was_opened_again_counts_anew() -> None:
    speed = speed_with(PLANNED)
    speed.learn((report(0, counts(1_000_000, 0, 0)),), 7)
    speed.learn((report(0, counts(2_000_000, 900_000, 0)),), 7)

    assert figures(speed.experts).hit_rate == pytest.approx(0.9, abs=0.01)

    speed.learn((report(0, counts(1_000_000, 100_000, 0)),), 7)

    assert figures(speed.experts).hit_rate == pytest.approx(0.1, abs=0.01)


def test_the_bound_moves_from_the_planned_bytes_to_those_that_a_token_reads() -> None:
    speed = speed_with(PLANNED)
    assert speed.bound_tokens_per_second == pytest.approx(1000 / 1300)

    for step in range(200):
        speed.learn((report(0, counts(4 * step, 4 * step, 100 * step)),), 1)

    assert figures(speed.experts).bytes_per_token == pytest.approx(100, abs=1)
    assert speed.bound_tokens_per_second == pytest.approx(1000 / (1000 + 100), rel=0.01)


def test_steps_of_several_tokens_say_nothing_of_one() -> None:
    speed = speed_with(PLANNED)
    for step in range(50):
        speed.learn((report(0, counts(4 * step, 0, 10_000 * step)),), 8)

    assert figures(speed.experts).bytes_per_token == 300
