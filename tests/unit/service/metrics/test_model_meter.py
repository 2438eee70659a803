"""What a model's counters say of events, runs and instructions, one after the other."""

from typing import Any

import pytest

from teengined.core.request import FinishReason
from teengined.core.sampling import SamplingParams
from teengined.protocol.worker_messages import SampledToken, SequencePart, StepDone
from teengined.scheduler.events import Emit, End, Run, Submitted, Tick
from teengined.service.metrics.histogram import Histogram
from teengined.service.metrics.model_meter import ModelMeter


def submitted(*sequence_ids: int, num_tokens: int = 5) -> Submitted:
    return Submitted(
        sequence_ids=sequence_ids,
        owner="o",
        prompt=tuple(range(num_tokens)),
        sampling=SamplingParams(),
        eos_token_ids=frozenset(),
        deadline_seconds=100.0,
    )


def run(*parts: tuple[int, int, int]) -> Run:
    """Return a run of parts (sequence, start position, number of tokens)."""
    return Run(
        step=0,
        parts=tuple(
            SequencePart(sequence_id=sequence_id, token_ids=(0,) * num_tokens, start_position=start)
            for sequence_id, start, num_tokens in parts
        ),
    )


def emit(sequence_id: int) -> Emit:
    return Emit(sequence_id=sequence_id, token=SampledToken(sequence_id=sequence_id, token_id=1), silent=False)


def report(stage_index: int, **found: float) -> StepDone:
    times: dict[str, Any] = {"seconds": 0.0, "compute_seconds": 0.0, "stall_seconds": 0.0, "streamed_bytes": 0} | found
    return StepDone(deployment_id="d", stage_index=stage_index, step=0, tokens=(), **times)


def seen(histogram: Histogram) -> tuple[int, Any]:
    return sum(histogram.distribution.counts), pytest.approx(histogram.total)


def test_request_is_timed_from_admission_through_its_first_step_to_its_tokens():
    meter = ModelMeter(1)
    meter.note_event(submitted(0), 10.0)
    meter.note_run(run((0, 2, 3)), 10.5)
    meter.note_instruction(emit(0), 11.0)
    meter.note_run(run((0, 5, 1)), 11.0)
    meter.note_instruction(emit(0), 11.25)
    meter.note_instruction(End(sequence_id=0, reason=FinishReason.STOP), 11.25)

    assert seen(meter.queue_seconds) == (1, 0.5)
    assert seen(meter.first_token_seconds) == (1, 1.0)
    assert seen(meter.inter_token_seconds) == (1, 0.25)
    assert (meter.num_prompt_tokens, meter.num_cached_tokens, meter.num_generated_tokens) == (5, 2, 2)


def test_choices_share_one_prompt_one_wait_and_one_first_token():
    meter = ModelMeter(1)
    meter.note_event(submitted(0, 1), 0.0)
    meter.note_run(run((0, 0, 5)), 1.0)
    meter.note_run(run((0, 5, 1), (1, 4, 1)), 2.0)
    for moment in (3.0, 4.0):
        meter.note_instruction(emit(0), moment)
        meter.note_instruction(emit(1), moment)

    assert (meter.num_prompt_tokens, meter.num_cached_tokens, meter.num_generated_tokens) == (5, 0, 4)
    assert seen(meter.queue_seconds) == (1, 1.0)
    assert seen(meter.first_token_seconds) == (1, 3.0)
    assert seen(meter.inter_token_seconds) == (2, 2.0)


def test_tokens_of_one_moment_have_no_time_between_them():
    meter = ModelMeter(1)
    meter.note_event(submitted(0), 1.0)
    for moment in (2.0, 2.0, 3.0):
        meter.note_instruction(emit(0), moment)

    assert seen(meter.inter_token_seconds) == (1, 1.0)


def test_prompt_that_is_computed_again_is_counted_once():
    meter = ModelMeter(1)
    meter.note_event(submitted(0), 0.0)
    meter.note_run(run((0, 0, 5)), 1.0)
    meter.note_run(run((0, 0, 5)), 9.0)

    assert meter.num_prompt_tokens == 5
    assert seen(meter.queue_seconds) == (1, 1.0)


def test_steps_are_counted_by_rows_and_sequences():
    meter = ModelMeter(2)
    meter.note_run(run((0, 0, 5), (1, 7, 1)), 0.0)

    assert seen(meter.step_rows) == (1, 6.0)
    assert seen(meter.step_sequences) == (1, 2.0)


def test_stages_are_summed_and_the_slowest_gives_the_steps_time():
    meter = ModelMeter(2)
    for _ in range(2):
        meter.note_step([report(0, seconds=1.0, stall_seconds=0.25), report(1, seconds=2.0, streamed_bytes=7)])

    assert seen(meter.step_seconds) == (2, 4.0)
    assert [(stage.busy_seconds, stage.stall_seconds) for stage in meter.stages] == [(2.0, 0.5), (4.0, 0.0)]
    assert meter.stages[1].streamed_bytes == 14


def test_step_that_failed_has_no_time_but_what_it_moved_counts():
    meter = ModelMeter(2)
    meter.note_step([report(0, streamed_bytes=7)])

    assert seen(meter.step_seconds) == (0, 0.0)
    assert meter.stages[0].streamed_bytes == 7


def test_nothing_is_kept_of_what_ended():
    meter = ModelMeter(1)
    meter.note_event(submitted(0, 1), 0.0)
    meter.note_event(Tick(), 0.5)
    meter.note_instruction(End(sequence_id=0, reason=FinishReason.CANCELLED), 1.0)
    meter.forget_sequences()
    meter.note_instruction(emit(1), 2.0)

    assert meter._live == {}
    assert meter.num_generated_tokens == 1
