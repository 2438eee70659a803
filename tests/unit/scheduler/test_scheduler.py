import pytest

from teengined.core.errors import (
    DeadlineExceeded,
    InternalError,
    NumericalFault,
    PluginError,
    UnknownRequest,
    WorkerLost,
)
from teengined.core.request import FinishReason
from teengined.interfaces.policy import SchedulingPolicy
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import (
    Cancelled,
    Emit,
    End,
    PipelineLost,
    PipelineReady,
    StepCompleted,
    StepFailed,
    Stopped,
    Tick,
)
from tests.unit.scheduler.machine import EOS, done, ends_of, lengths, next_run, scheduler, step, submitted


class LosesOne(SchedulingPolicy):
    name = "loses-one"

    def order(self, sequences, now_seconds):
        return [view.id for view in sequences][1:]


class Raises(SchedulingPolicy):
    name = "raises"

    def order(self, sequences, now_seconds):
        raise ZeroDivisionError("of its own")


def test_prompt_is_prefilled_then_decoded_one_token_at_a_time():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)

    first = next_run(machine)
    second = step(machine, first, 7)

    assert [(part.token_ids, part.start_position, part.sample) for part in first.parts] == [((1, 2, 3), 0, True)]
    assert [(part.token_ids, part.start_position, part.sample) for part in second.parts] == [((7,), 3, True)]


def test_sequence_is_opened_with_its_first_part_and_gets_blocks_as_it_grows():
    machine = scheduler(block_tokens=2)
    machine.handle(submitted(1), 0.0)

    first = next_run(machine)
    second = step(machine, first)
    third = step(machine, second)

    assert [opening.sequence_id for opening in first.opened] == [1]
    assert second.opened == third.opened == ()
    assert [len(run.parts[0].new_blocks) for run in (first, second, third)] == [2, 0, 1]


def test_history_goes_along_only_where_sampling_looks_at_it():
    machine = scheduler()
    machine.handle(submitted(1, presence_penalty=1.0), 0.0)
    machine.handle(submitted(2), 0.0)

    assert [opening.history for opening in next_run(machine).opened] == [(1, 2, 3), ()]


def test_long_prompt_goes_in_chunks_and_only_the_last_is_sampled():
    machine = scheduler(max_step_tokens=4)
    machine.handle(submitted(1, prompt=tuple(range(6))), 0.0)

    first = next_run(machine)
    second = step(machine, first)

    assert [(len(part.token_ids), part.sample) for part in (*first.parts, *second.parts)] == [(4, False), (2, True)]


def test_decode_goes_on_beside_the_prefill_of_another():
    machine = scheduler(max_step_tokens=4)
    machine.handle(submitted(1), 0.0)
    first = next_run(machine)
    machine.handle(submitted(2, prompt=tuple(range(10))), 0.0)

    assert lengths(step(machine, first)) == {1: 1, 2: 3}


def test_only_one_step_is_in_flight():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)
    next_run(machine)
    machine.handle(submitted(2), 0.0)

    assert machine.next_runs(0.0) == ()


def test_steps_are_counted_without_gap():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)
    run = next_run(machine)

    assert [run.step, step(machine, run).step] == [0, 1]


def test_end_of_sequence_ends_silently_and_the_next_run_closes_it():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)
    first = next_run(machine)

    instructions = machine.handle(done(first, EOS), 0.1)
    machine.handle(submitted(2), 0.1)

    token = SampledToken(sequence_id=1, token_id=EOS)
    assert instructions == (
        Emit(sequence_id=1, token=token, silent=True),
        End(sequence_id=1, reason=FinishReason.STOP),
    )
    assert next_run(machine).closed == (1,)


def test_end_of_sequence_that_is_ignored_is_a_token_like_any_other():
    machine = scheduler()
    machine.handle(submitted(1, ignore_eos=True), 0.0)

    instructions = machine.handle(done(next_run(machine), EOS), 0.1)

    assert [item.silent for item in instructions if isinstance(item, Emit)] == [False]
    assert ends_of(instructions) == []


def test_stop_token_ends_silently_but_not_before_the_least_number_of_tokens():
    machine = scheduler()
    machine.handle(submitted(1, stop_token_ids=(7,), min_tokens=1), 0.0)
    first = next_run(machine)

    early = machine.handle(done(first, 7), 0.1)
    late = machine.handle(done(next_run(machine), 7), 0.2)

    assert [item.silent for item in (*early, *late) if isinstance(item, Emit)] == [False, True]
    assert [end.reason for end in ends_of(early + late)] == [FinishReason.STOP]


def test_last_token_ends_with_length():
    machine = scheduler()
    machine.handle(submitted(1, max_tokens=1), 0.0)

    ends = ends_of(machine.handle(done(next_run(machine)), 0.1))

    assert ends == [End(sequence_id=1, reason=FinishReason.LENGTH)]


def test_stop_text_ends_the_sequence_and_what_it_still_draws_is_dropped():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)
    second = step(machine, next_run(machine))

    ends = machine.handle(Stopped(sequence_id=1), 0.1)

    assert ends == (End(sequence_id=1, reason=FinishReason.STOP),)
    assert machine.handle(done(second), 0.2) == ()


def test_cancelled_sequence_ends_at_once_and_so_do_its_blocks_and_its_place():
    machine = scheduler(max_running=1, num_blocks=2)
    machine.handle(submitted(1), 0.0)
    first = next_run(machine)
    machine.handle(submitted(2), 0.0)

    ends = machine.handle(Cancelled(sequence_id=1), 0.0)

    assert ends == (End(sequence_id=1, reason=FinishReason.CANCELLED),)
    assert machine.num_used_blocks == 0
    second = step(machine, first)
    assert second.closed == (1,)
    assert lengths(second) == {2: 3}


def test_sequence_ends_once_whatever_happens_after():
    machine = scheduler()
    machine.handle(submitted(1, deadline_seconds=5.0), 0.0)
    first = next_run(machine)
    machine.handle(Cancelled(sequence_id=1), 0.0)

    events = [
        Cancelled(sequence_id=1),
        Stopped(sequence_id=1),
        Tick(),
        done(first),
        PipelineLost(error=WorkerLost("x")),
    ]

    assert [machine.handle(event, 9.0) for event in events] == [()] * 5


def test_sequence_past_its_deadline_fails():
    machine = scheduler()
    machine.handle(submitted(1, deadline_seconds=5.0), 0.0)

    assert ends_of(machine.handle(Tick(), 4.9)) == []
    assert isinstance(ends_of(machine.handle(Tick(), 5.0))[0].error, DeadlineExceeded)


def test_failed_step_fails_its_sequences_and_no_others():
    machine = scheduler(max_running=1)
    machine.handle(submitted(1), 0.0)
    first = next_run(machine)
    machine.handle(submitted(2), 0.0)

    ends = ends_of(machine.handle(StepFailed(step=first.step, error=InternalError("broken")), 0.1))

    assert [end.sequence_id for end in ends] == [1]
    assert lengths(next_run(machine)) == {2: 3}


def test_failed_step_with_someone_to_blame_fails_those_and_runs_the_others_again():
    machine = scheduler()
    for sequence_id in (1, 2, 3):
        machine.handle(submitted(sequence_id), 0.0)
    first = next_run(machine)
    assert lengths(first).keys() == {1, 2, 3}

    failed = StepFailed(step=first.step, error=InternalError("broken"), blamed_ids=(2,))
    ends = ends_of(machine.handle(failed, 0.1))

    assert [end.sequence_id for end in ends] == [2]
    again = next_run(machine)
    assert lengths(again) == {1: 3, 3: 3}
    assert all(part.start_position == 0 for part in again.parts)
    assert set(again.closed) == {1, 2, 3}
    assert {opened.sequence_id for opened in again.opened} == {1, 3}


def test_blocks_of_a_failed_step_are_not_kept():
    machine = scheduler()
    machine.handle(submitted(1, prompt=tuple(range(8))), 0.0)

    machine.handle(StepFailed(step=next_run(machine).step, error=InternalError("broken")), 0.1)

    assert machine.num_cached_blocks == 0


def test_lost_pipeline_fails_everything_and_waits_to_be_ready():
    machine = scheduler(max_running=1)
    machine.handle(submitted(1), 0.0)
    first = next_run(machine)
    machine.handle(submitted(2), 0.0)

    lost = machine.handle(PipelineLost(error=WorkerLost("gone")), 0.1)
    machine.handle(submitted(3), 0.2)
    late = machine.handle(done(first), 0.3)
    while_lost = machine.next_runs(0.3)
    machine.handle(PipelineReady(), 0.4)

    assert [end.sequence_id for end in ends_of(lost)] == [1, 2]
    assert while_lost == late == ()
    run = next_run(machine)
    assert (run.step, run.closed) == (0, ())


def test_lost_pipeline_takes_the_prefix_cache_along():
    machine = scheduler()
    machine.handle(submitted(1, prompt=tuple(range(8)), max_tokens=1), 0.0)
    machine.handle(done(next_run(machine)), 0.1)
    assert machine.num_cached_blocks == 2

    machine.handle(PipelineLost(error=WorkerLost("gone")), 0.2)

    assert machine.num_cached_blocks == 0


def test_sampled_part_without_a_token_is_an_error_of_its_sequence():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)
    machine.handle(submitted(2), 0.0)
    run = next_run(machine)
    token = SampledToken(sequence_id=2, token_id=4)

    instructions = machine.handle(StepCompleted(step=run.step, tokens=(token,)), 0.1)

    assert [(end.sequence_id, type(end.error)) for end in ends_of(instructions)] == [(1, InternalError)]
    assert Emit(sequence_id=2, token=token, silent=False) in instructions


def test_fault_ends_its_sequence_under_its_own_code_and_its_blocks_are_not_kept():
    machine = scheduler()
    machine.handle(submitted(1, prompt=tuple(range(6))), 0.0)
    second = step(machine, next_run(machine))
    fault = SampledToken(sequence_id=1, token_id=-1, fault="numerical_fault", message="not numbers")

    (end,) = machine.handle(StepCompleted(step=second.step, tokens=(fault,)), 0.1)

    assert isinstance(end, End)
    assert isinstance(end.error, NumericalFault)
    assert end.error.message == "not numbers"
    assert machine.num_cached_blocks == 0


def test_sequence_says_where_it_stands():
    machine = scheduler(max_running=1, max_step_tokens=2)
    machine.handle(submitted(1), 0.0)
    machine.handle(submitted(2), 0.0)
    first = next_run(machine)
    states = [machine.state_of(1), machine.state_of(2)]
    second = step(machine, first)
    step(machine, second)

    assert [*states, machine.state_of(1)] == ["prefill", "queued", "decode"]
    with pytest.raises(UnknownRequest):
        machine.state_of(3)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (LosesOne(), "'loses-one' did not return a permutation"),
        (Raises(), r"'raises' failed: ZeroDivisionError\('of its own'\)"),
    ],
)
def test_policy_that_breaks_its_contract_is_named_and_everything_can_still_be_ended(policy, message):
    machine = scheduler(policy)
    machine.handle(submitted(1), 0.0)

    with pytest.raises(PluginError, match=message):
        machine.next_runs(0.0)

    assert [end.sequence_id for end in ends_of(machine.handle(PipelineLost(error=WorkerLost("over")), 0.1))] == [1]
