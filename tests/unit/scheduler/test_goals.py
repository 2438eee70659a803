from teengined.core.errors import InternalError
from teengined.core.request import FinishReason, Goal, TokenLogprobs
from teengined.protocol.worker_messages import PooledVector, PromptLogprobs, SampledToken
from teengined.scheduler.events import Emit, End, StepCompleted, Tell
from tests.unit.scheduler.machine import next_run, scheduler, submitted

PROMPT = tuple(range(6))


def rows(sequence_id: int, start: int, stop: int) -> PromptLogprobs:
    logprobs = tuple(TokenLogprobs(token_id=PROMPT[position], logprob=-1.0) for position in range(start, stop))
    return PromptLogprobs(sequence_id=sequence_id, start_position=start, logprobs=logprobs)


def told(instructions) -> list[tuple[int, int]]:
    found = [item.prompt_logprobs for item in instructions if isinstance(item, Tell)]
    return [(item.start_position, len(item.logprobs)) for item in found if item is not None]


def test_scored_sequence_tells_of_its_prompt_and_ends_without_drawing():
    machine = scheduler()
    machine.handle(submitted(1, prompt=PROMPT, goal=Goal.SCORE, score_start=2), 0.0)
    run = next_run(machine)

    instructions = machine.handle(StepCompleted(step=run.step, tokens=(), prompt_logprobs=(rows(1, 2, 6),)), 0.1)

    assert not run.parts[0].sample
    assert run.opened[0].score_start == 2
    assert instructions == (
        Tell(sequence_id=1, prompt_logprobs=rows(1, 2, 6)),
        End(sequence_id=1, reason=FinishReason.STOP),
    )


def test_embedded_sequence_tells_its_vector_and_ends():
    machine = scheduler(max_step_tokens=4)
    machine.handle(submitted(1, prompt=PROMPT, goal=Goal.EMBED, pooling="mean"), 0.0)
    first = next_run(machine)
    vector = PooledVector(sequence_id=1, vector=b"1234")

    assert machine.handle(StepCompleted(step=first.step, tokens=()), 0.1) == ()
    second = next_run(machine)
    instructions = machine.handle(StepCompleted(step=second.step, tokens=(), vectors=(vector,)), 0.2)

    assert (first.opened[0].pooling, second.parts[0].sample) == ("mean", False)
    assert instructions == (Tell(sequence_id=1, vector=vector), End(sequence_id=1, reason=FinishReason.STOP))


def test_generating_sequence_tells_of_its_prompt_before_its_first_token():
    machine = scheduler()
    machine.handle(submitted(1, prompt=PROMPT, prompt_logprobs=0), 0.0)
    run = next_run(machine)
    token = SampledToken(sequence_id=1, token_id=4)

    instructions = machine.handle(StepCompleted(step=run.step, tokens=(token,), prompt_logprobs=(rows(1, 1, 6),)), 0.1)

    assert instructions == (
        Tell(sequence_id=1, prompt_logprobs=rows(1, 1, 6)),
        Emit(sequence_id=1, token=token, silent=False),
    )


def test_what_was_told_before_is_not_told_again():
    machine = scheduler(max_step_tokens=3)
    machine.handle(submitted(1, prompt=PROMPT, goal=Goal.SCORE), 0.0)
    first = next_run(machine)
    early = machine.handle(StepCompleted(step=first.step, tokens=(), prompt_logprobs=(rows(1, 1, 4),)), 0.1)
    second = next_run(machine)

    late = machine.handle(StepCompleted(step=second.step, tokens=(), prompt_logprobs=(rows(1, 2, 6),)), 0.2)

    assert (told(early), told(late)) == ([(1, 3)], [(4, 2)])


def test_hole_in_what_is_told_is_an_error():
    for answer in ((), (rows(1, 2, 6),), (rows(1, 1, 5),)):
        machine = scheduler()
        machine.handle(submitted(1, prompt=PROMPT, goal=Goal.SCORE), 0.0)
        run = next_run(machine)

        ends = [
            item
            for item in machine.handle(StepCompleted(step=run.step, tokens=(), prompt_logprobs=answer), 0.1)
            if isinstance(item, End)
        ]

        assert [type(end.error) for end in ends] == [InternalError]


def test_vector_that_is_missing_is_an_error():
    machine = scheduler()
    machine.handle(submitted(1, prompt=PROMPT, goal=Goal.EMBED, pooling="last"), 0.0)

    (end,) = machine.handle(StepCompleted(step=next_run(machine).step, tokens=()), 0.1)

    assert isinstance(end, End)
    assert isinstance(end.error, InternalError)


def test_prompt_of_one_token_has_nothing_to_tell():
    machine = scheduler()
    machine.handle(submitted(1, prompt=(3,), goal=Goal.SCORE), 0.0)

    instructions = machine.handle(StepCompleted(step=next_run(machine).step, tokens=()), 0.1)

    assert instructions == (End(sequence_id=1, reason=FinishReason.STOP),)


def test_scored_sequences_of_one_request_each_tell_for_themselves():
    machine = scheduler(max_step_tokens=20, max_logit_rows=20)
    machine.handle(submitted(1, 2, prompt=PROMPT, goal=Goal.SCORE), 0.0)
    run = next_run(machine)

    instructions = machine.handle(
        StepCompleted(step=run.step, tokens=(), prompt_logprobs=(rows(1, 1, 6), rows(2, 1, 6))), 0.1
    )

    assert told(instructions) == [(1, 5), (1, 5)]
