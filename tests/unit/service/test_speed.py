from dataclasses import replace

import pytest

from teengined.core.plan import Objective, Plan, Stage, StageCost
from teengined.core.request import Usage
from teengined.protocol.worker_messages import StepDone
from teengined.service.speed import SpeedMeter


def meter(*, compute_seconds: float, streamed_bytes: int, disk: float) -> SpeedMeter:
    cost = StageCost(
        compute_seconds=compute_seconds, host_seconds=0, disk_seconds=0, hop_seconds=0, seconds=0, binding="disk"
    )
    stage = Stage(
        index=0,
        device_id="cpu:0",
        layer_start=0,
        layer_end=1,
        has_embedding=True,
        has_head=True,
        compute_dtype="fp32",
        units=(),
        resident_bytes=0,
        ring_bytes=0,
        kv_bytes=0,
        workspace_bytes=0,
        transport="",
        cost=cost,
    )
    plan = Plan(
        model="m",
        policy="optimal",
        objective=Objective.LATENCY,
        context_tokens=1,
        num_slots=1,
        stages=(stage,),
        seconds_per_token=1,
        period_seconds=1,
        prefill_seconds=1,
        streamed_bytes_per_token=streamed_bytes,
        lower_bound_seconds=1,
        gap=0,
    )
    return SpeedMeter(plan=plan, disk_bytes_per_second=disk)


def done(*, streamed_bytes: int = 0, read_seconds: float = 0.0, compute_seconds: float = 1.0) -> StepDone:
    return StepDone(
        deployment_id="d",
        stage_index=0,
        step=0,
        tokens=(),
        seconds=compute_seconds,
        compute_seconds=compute_seconds,
        stall_seconds=0,
        streamed_bytes=streamed_bytes,
        read_seconds=read_seconds,
    )


def test_the_bound_is_the_slower_of_compute_and_disk():
    assert meter(compute_seconds=0.5, streamed_bytes=100, disk=100.0).bound_tokens_per_second == 1.0
    assert meter(compute_seconds=2.0, streamed_bytes=100, disk=100.0).bound_tokens_per_second == 0.5


def test_a_disk_that_reads_faster_than_it_was_measured_raises_the_bound():
    speed = meter(compute_seconds=0.1, streamed_bytes=100, disk=100.0)

    speed.learn([done(streamed_bytes=400, read_seconds=1.0)], num_tokens=1)

    assert speed.disk_bytes_per_second == 400.0


def test_stages_that_read_side_by_side_share_the_disk():
    speed = meter(compute_seconds=0.1, streamed_bytes=100, disk=100.0)
    first = done(streamed_bytes=200, read_seconds=1.0)

    speed.learn([first, replace(first, stage_index=1)], num_tokens=1)

    assert speed.disk_bytes_per_second == 400.0


def test_a_disk_that_reads_slower_than_it_was_measured_leaves_the_bound():
    speed = meter(compute_seconds=0.1, streamed_bytes=100, disk=100.0)

    speed.learn([done(streamed_bytes=40, read_seconds=1.0)], num_tokens=1)

    assert speed.disk_bytes_per_second == 100.0


def test_a_moment_of_reading_says_nothing_about_the_disk():
    speed = meter(compute_seconds=0.1, streamed_bytes=100, disk=100.0)

    speed.learn([done(streamed_bytes=400, read_seconds=0.01)], num_tokens=1)

    assert speed.disk_bytes_per_second == 100.0


def test_a_single_token_that_computes_faster_than_predicted_raises_the_bound():
    speed = meter(compute_seconds=2.0, streamed_bytes=0, disk=100.0)

    speed.learn([done(compute_seconds=1.0)], num_tokens=1)

    assert speed.bound_tokens_per_second == 1.0


def test_a_batch_says_nothing_about_a_single_token():
    speed = meter(compute_seconds=2.0, streamed_bytes=0, disk=100.0)

    speed.learn([done(compute_seconds=1.0)], num_tokens=8)

    assert speed.bound_tokens_per_second == 0.5


def test_finished_answers_make_a_running_mean():
    speed = meter(compute_seconds=1.0, streamed_bytes=0, disk=1.0)
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=11,
        prefill_seconds=1,
        decode_seconds=5,
        streamed_bytes=0,
        bound_seconds_per_token=1,
    )

    speed.note(usage)

    assert speed.tokens_per_second == pytest.approx(2.0)
    assert speed.num_completed == 1


def test_bound_counts_as_many_tokens_a_step_as_there_were_of_late():
    speed = meter(compute_seconds=1.0, streamed_bytes=0, disk=1.0)
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=10,
        prefill_seconds=1,
        decode_seconds=5,
        streamed_bytes=0,
        bound_seconds_per_token=1,
        accepted_tokens=8,
    )

    for _ in range(30):
        speed.note(usage)

    assert speed.bound_tokens_per_second == pytest.approx(5.0, rel=0.01)
