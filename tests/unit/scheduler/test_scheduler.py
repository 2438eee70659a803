import random

import pytest

from teengined.core.errors import DeadlineExceeded, InternalError, PluginError, QueueFull, WorkerLost
from teengined.core.request import FinishReason
from teengined.core.sampling import SamplingParams
from teengined.interfaces.policy import SchedulingPolicy
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import (
    Cancelled,
    Emit,
    End,
    Event,
    Forget,
    Instruction,
    PipelineLost,
    PipelineReady,
    Run,
    StepCompleted,
    StepFailed,
    Submitted,
    Tick,
)
from teengined.scheduler.scheduler import Scheduler, SchedulerLimits

EOS = 9


class ByArrival(SchedulingPolicy):
    name = "by-arrival"

    def order(self, sequences, now_seconds):
        return [view.id for view in sorted(sequences, key=lambda view: (view.arrived_seconds, view.id))]


class LosesOne(SchedulingPolicy):
    name = "loses-one"

    def order(self, sequences, now_seconds):
        return [view.id for view in sequences][1:]


class Raises(SchedulingPolicy):
    name = "raises"

    def order(self, sequences, now_seconds):
        raise ZeroDivisionError("of its own")


def scheduler(num_slots: int = 2, max_waiting: int = 8, max_step_tokens: int = 8) -> Scheduler:
    limits = SchedulerLimits(num_slots=num_slots, max_waiting=max_waiting, max_step_tokens=max_step_tokens)
    return Scheduler(ByArrival(), limits)


def submitted(sequence_id: int, prompt: tuple[int, ...] = (1, 2, 3), **more) -> Submitted:
    sampling = SamplingParams(max_tokens=more.pop("max_tokens", 4), ignore_eos=more.pop("ignore_eos", False))
    return Submitted(
        sequence_id=sequence_id,
        owner="someone",
        prompt=prompt,
        sampling=sampling,
        eos_token_ids=frozenset({EOS}),
        deadline_seconds=more.pop("deadline_seconds", 1e9),
    )


def done(run: Run, token_id: int = 5) -> StepCompleted:
    tokens = [SampledToken(sequence_id=part.sequence_id, token_id=token_id) for part in run.sequences if part.sample]
    return StepCompleted(step=run.step, tokens=tuple(tokens))


def run_of(instructions: tuple[Instruction, ...]) -> Run:
    return next(item for item in instructions if isinstance(item, Run))


def ends_of(instructions: tuple[Instruction, ...]) -> list[End]:
    return [item for item in instructions if isinstance(item, End)]


def test_prompt_is_prefilled_then_decoded_one_token_at_a_time():
    machine = scheduler()

    first = run_of(machine.handle(submitted(1), 0.0))
    second = run_of(machine.handle(done(first, 7), 0.1))

    assert [(part.token_ids, part.start_position, part.sample) for part in first.sequences] == [((1, 2, 3), 0, True)]
    assert [(part.token_ids, part.start_position, part.sample) for part in second.sequences] == [((7,), 3, True)]


def test_long_prompt_goes_in_chunks_and_only_the_last_is_sampled():
    machine = scheduler(max_step_tokens=4)

    first = run_of(machine.handle(submitted(1, prompt=tuple(range(6))), 0.0))
    second = run_of(machine.handle(done(first), 0.1))

    assert [(len(part.token_ids), part.sample) for part in (*first.sequences, *second.sequences)] == [
        (4, False),
        (2, True),
    ]


def test_decode_goes_on_beside_the_prefill_of_another():
    machine = scheduler(max_step_tokens=4)
    first = run_of(machine.handle(submitted(1), 0.0))
    machine.handle(submitted(2, prompt=tuple(range(10))), 0.0)

    second = run_of(machine.handle(done(first), 0.1))

    assert {part.sequence_id: len(part.token_ids) for part in second.sequences} == {1: 1, 2: 3}


def test_only_one_step_is_in_flight():
    machine = scheduler()
    machine.handle(submitted(1), 0.0)

    assert machine.handle(submitted(2), 0.0) == ()


def test_end_of_sequence_ends_silently():
    machine = scheduler()
    first = run_of(machine.handle(submitted(1), 0.0))

    instructions = machine.handle(done(first, EOS), 0.1)

    assert instructions == (
        Emit(sequence_id=1, token_id=EOS, silent=True),
        End(sequence_id=1, reason=FinishReason.STOP),
        Forget(sequence_ids=(1,)),
    )


def test_last_token_ends_with_length():
    machine = scheduler()
    first = run_of(machine.handle(submitted(1, max_tokens=1), 0.0))

    assert ends_of(machine.handle(done(first), 0.1)) == [End(sequence_id=1, reason=FinishReason.LENGTH)]


def test_cancelled_sequence_ends_at_once_and_keeps_its_slot_until_the_step_is_over():
    machine = scheduler(num_slots=1)
    first = run_of(machine.handle(submitted(1), 0.0))
    machine.handle(submitted(2), 0.0)

    at_once = machine.handle(Cancelled(sequence_id=1), 0.0)
    later = machine.handle(done(first), 0.1)

    assert at_once == (End(sequence_id=1, reason=FinishReason.CANCELLED),)
    assert later[0] == Forget(sequence_ids=(1,))
    assert [part.sequence_id for part in run_of(later).sequences] == [2]


def test_queue_that_is_full_refuses_and_changes_nothing():
    machine = scheduler(num_slots=1, max_waiting=1)
    machine.handle(submitted(1), 0.0)
    machine.handle(submitted(2), 0.0)

    with pytest.raises(QueueFull) as caught:
        machine.handle(submitted(3), 0.0)

    assert machine.num_waiting == 1
    assert (caught.value.retry_after_seconds or 0) > 0


def test_no_waiting_room_still_lets_a_free_slot_be_taken():
    machine = scheduler(num_slots=1, max_waiting=0)

    assert run_of(machine.handle(submitted(1), 0.0)).step == 0


def test_sequence_past_its_deadline_fails():
    machine = scheduler()
    machine.handle(submitted(1, deadline_seconds=5.0), 0.0)

    assert ends_of(machine.handle(Tick(), 4.9)) == []
    assert isinstance(ends_of(machine.handle(Tick(), 5.0))[0].error, DeadlineExceeded)


def test_failed_step_fails_its_sequences_and_no_others():
    machine = scheduler(num_slots=1)
    first = run_of(machine.handle(submitted(1), 0.0))
    machine.handle(submitted(2), 0.0)

    instructions = machine.handle(StepFailed(step=first.step, error=InternalError("broken")), 0.1)

    assert [end.sequence_id for end in ends_of(instructions)] == [1]
    assert [part.sequence_id for part in run_of(instructions).sequences] == [2]


def test_lost_pipeline_fails_everything_and_waits_to_be_ready():
    machine = scheduler(num_slots=1)
    first = run_of(machine.handle(submitted(1), 0.0))
    machine.handle(submitted(2), 0.0)

    lost = machine.handle(PipelineLost(error=WorkerLost("gone")), 0.1)
    while_lost = machine.handle(submitted(3), 0.2)
    late = machine.handle(done(first), 0.3)
    ready = machine.handle(PipelineReady(), 0.4)

    assert [end.sequence_id for end in ends_of(lost)] == [1, 2]
    assert while_lost == late == ()
    assert run_of(ready).step == 0


def test_sampled_part_without_a_token_is_an_error_of_its_sequence():
    machine = scheduler()
    first = run_of(machine.handle(submitted(1), 0.0))

    ends = ends_of(machine.handle(StepCompleted(step=first.step, tokens=()), 0.1))

    assert isinstance(ends[0].error, InternalError)


def test_policy_that_loses_a_sequence_is_named():
    machine = Scheduler(LosesOne(), SchedulerLimits(num_slots=1, max_waiting=1, max_step_tokens=4))

    with pytest.raises(PluginError, match="loses-one"):
        machine.handle(submitted(1), 0.0)


class Story:
    """A random life of a scheduler, with a model of what the stages would hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = scheduler(self.random.randint(1, 4), self.random.randint(0, 6), self.random.randint(4, 12))
        self.known: dict[int, int] = {}
        self.submitted: set[int] = set()
        self.ended: list[int] = []
        self.step: Run | None = None
        self.lost = False

    def play(self, num_events: int) -> None:
        for now in range(num_events):
            self.take(self.next_event(), float(now))
        now = num_events
        while self.step is not None or self.lost:
            self.take(done(self.step) if self.step else PipelineReady(), float(now))
            now += 1

    def next_event(self) -> Event:
        choice = self.random.random()
        if choice < 0.35 or not self.submitted:
            prompt = tuple(self.random.randint(0, 8) for _ in range(self.random.randint(1, 20)))
            deadline = self.random.choice([1e9, 150.0])
            return submitted(
                len(self.submitted) + 1, prompt, max_tokens=self.random.randint(1, 6), deadline_seconds=deadline
            )
        if choice < 0.45:
            return Cancelled(sequence_id=self.random.randint(1, len(self.submitted)))
        if choice < 0.5:
            return Tick()
        if choice < 0.53:
            return PipelineLost(error=WorkerLost("gone"))
        if self.lost:
            return PipelineReady()
        if self.step is None:
            return Tick()
        if choice < 0.57:
            return StepFailed(step=self.step.step, error=InternalError("broken"))
        return done(self.step, self.random.choice([3, 4, EOS]))

    def take(self, event: Event, now: float) -> None:
        if isinstance(event, (StepCompleted, StepFailed)):
            self.step = None
        if isinstance(event, (PipelineLost, PipelineReady)):
            self.lost = isinstance(event, PipelineLost)
            self.step, self.known = None, {}
        if isinstance(event, Submitted):
            self.submitted.add(event.sequence_id)
        try:
            instructions = self.machine.handle(event, now)
        except QueueFull:
            assert isinstance(event, Submitted)
            self.ended.append(event.sequence_id)
            return
        for instruction in instructions:
            self.obey(instruction)

    def obey(self, instruction: Instruction) -> None:
        match instruction:
            case End():
                self.ended.append(instruction.sequence_id)
            case Emit():
                assert instruction.sequence_id not in self.ended
            case Forget():
                for sequence_id in instruction.sequence_ids:
                    del self.known[sequence_id]
            case Run():
                self.run(instruction)

    def run(self, step: Run) -> None:
        assert self.step is None
        assert not self.lost
        limits = self.machine.limits
        assert 1 <= sum(len(part.token_ids) for part in step.sequences) <= limits.max_step_tokens
        for part in step.sequences:
            assert part.sequence_id not in self.ended
            assert part.start_position == self.known.get(part.sequence_id, 0)
            assert part.token_ids
            self.known[part.sequence_id] = part.start_position + len(part.token_ids)
        assert len(self.known) <= limits.num_slots
        self.step = step


@pytest.mark.parametrize("part", range(20))
def test_random_schedules_end_every_request_exactly_once(part: int, seed: int):
    for number in range(150):
        story = Story(seed * 10_000 + part * 150 + number)

        story.play(100)

        assert sorted(story.ended) == sorted(story.submitted)
        assert story.known == {}
        assert (story.machine.num_running, story.machine.num_waiting) == (0, 0)


def test_policy_that_raises_is_an_error_that_names_it():
    machine = Scheduler(Raises(), SchedulerLimits(num_slots=1, max_waiting=1, max_step_tokens=1))

    with pytest.raises(PluginError, match=r"'raises' failed: ZeroDivisionError\('of its own'\)"):
        machine.handle(submitted(1), 0.0)
