"""A draft model is asked when nothing else could use the time, and nothing depends on its answer."""

from typing import Any

import pytest

from teengined.core.errors import WorkerLost
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import (
    Cancelled,
    DraftModelOffered,
    GuessArrived,
    PipelineLost,
    PipelineReady,
    StepCompleted,
    Tick,
)
from tests.unit.scheduler.machine import lengths, next_run, scheduler, submitted
from tests.unit.scheduler.test_drafting import Willing, answered


class LookingUpPays(Willing):
    def is_on(self, request_class, source):
        return source == "lookup"


def asking(*sequence_ids: int, context_tokens: int = 100, prompt: tuple[int, ...] = (1, 2, 3), kind=Willing, **changed):
    """Return a machine whose sequences decode, and what is asked of its draft model."""
    values: dict[str, Any] = {"max_drafted": 4, "max_step_tokens": 16, "draft_wait_seconds": 5.0} | changed
    machine = scheduler(**values)
    machine._state.speculation = kind(max_drafted=machine.limits.max_drafted)
    machine.handle(DraftModelOffered(context_tokens=context_tokens), 0.0)
    for sequence_id in sequence_ids:
        machine.handle(submitted(sequence_id, prompt=prompt, max_tokens=20), 0.0)
    run = next_run(machine)
    tokens = tuple(SampledToken(sequence_id=sequence_id, token_id=7) for sequence_id in sequence_ids)
    machine.handle(StepCompleted(step=run.step, tokens=tokens), 1.0)
    runs = machine.next_runs(1.0)
    return machine, runs, machine.next_drafts()


def arrived(sequence_id: int, *token_ids: int, num_tokens: int = 4) -> GuessArrived:
    return GuessArrived(sequence_id=sequence_id, num_tokens=num_tokens, token_ids=token_ids)


def test_step_waits_for_the_guesses_of_all_that_decode():
    machine, runs, wanted = asking(1, 2)

    assert runs == ()
    assert [(item.sequence_id, item.tokens, item.num_wanted) for item in wanted] == [
        (1, (1, 2, 3, 7), 4),
        (2, (1, 2, 3, 7), 4),
    ]
    machine.handle(arrived(1, 10, 11), 1.1)
    assert machine.next_runs(1.1) == ()
    machine.handle(arrived(2, 12), 1.2)
    run = next_run(machine, 1.2)
    assert [part.token_ids for part in run.parts] == [(7, 10, 11), (7, 12)]
    assert machine.next_drafts() == ()


def test_right_guesses_are_counted_for_the_model():
    machine, _, _ = asking(1)
    machine.handle(arrived(1, 10, 11), 1.1)

    machine.handle(answered(next_run(machine), 10, 12), 1.2)

    assert [(item.source, item.num_drafted, item.num_accepted) for item in machine.drafted] == [("draft", 2, 1)]


def test_model_without_an_answer_is_not_asked_again_for_the_same_step():
    machine, _, _ = asking(1)

    machine.handle(arrived(1), 1.1)

    assert lengths(next_run(machine, 1.1)) == {1: 1}
    assert machine.next_drafts() == ()


def test_answer_that_takes_too_long_is_done_without():
    machine, _, _ = asking(1)
    machine.handle(Tick(), 5.9)
    assert machine.next_runs(5.9) == ()

    machine.handle(Tick(), 6.0)
    run = next_run(machine, 6.0)
    machine.handle(arrived(1, 10), 6.1)  # Too late.

    assert lengths(run) == {1: 1}


def test_model_that_goes_away_is_waited_for_no_longer():
    machine, _, _ = asking(1)

    machine.handle(DraftModelOffered(context_tokens=0), 1.1)
    run = next_run(machine, 1.1)
    machine.handle(answered(run, 5), 1.2)

    assert lengths(run) == {1: 1}
    assert lengths(next_run(machine, 1.2)) == {1: 1}
    assert machine.next_drafts() == ()


def test_sequence_that_ends_is_waited_for_no_longer():
    machine, _, _ = asking(1, 2)
    machine.handle(arrived(2, 10), 1.1)

    machine.handle(Cancelled(sequence_id=1), 1.1)

    assert lengths(next_run(machine, 1.1)) == {2: 2}


def test_lost_stages_leave_nothing_to_wait_for():
    machine, _, _ = asking(1)
    machine.handle(PipelineLost(error=WorkerLost("gone")), 1.1)
    machine.handle(PipelineReady(), 1.2)
    machine.handle(submitted(2), 1.2)

    assert lengths(next_run(machine, 1.2)) == {2: 3}


def test_prompt_that_could_run_meanwhile_comes_first():
    machine, _, _ = asking(1)
    machine.handle(arrived(1, 10), 1.1)
    machine.handle(answered(next_run(machine), 5), 1.2)
    machine.handle(submitted(2, prompt=tuple(range(40))), 1.2)

    assert machine.next_drafts() == ()
    assert lengths(next_run(machine, 1.2))[1] == 1


@pytest.mark.parametrize(("context_tokens", "num_wanted"), [(4, []), (6, [2]), (100, [4])])
def test_draft_model_is_asked_for_no_more_than_its_context_holds(context_tokens: int, num_wanted: list[int]):
    _, _, wanted = asking(1, context_tokens=context_tokens)

    assert [item.num_wanted for item in wanted] == num_wanted


def test_what_can_be_looked_up_is_not_asked_for():
    alike = (1, 2, 7, 9, 1, 2)

    assert len(asking(1, prompt=alike)[2]) == 1  # Nothing has shown yet that looking up pays.
    _, (run,), wanted = asking(1, prompt=alike, kind=LookingUpPays)
    assert wanted == ()
    assert run.parts[0].token_ids == (7, 9, 1, 2, 7)
    assert len(asking(1, prompt=alike, kind=LookingUpPays, lookup_tokens=0)[2]) == 1


def test_sequence_that_is_preempted_meanwhile_goes_on():
    machine, _, _ = asking(1)

    machine._state.preempt(machine._state.sequences[1], 1.1)

    assert lengths(next_run(machine, 1.1)) == {1: 4}


def test_time_that_the_model_takes_is_learned_once_it_knows_the_prompt():
    machine, _, _ = asking(1)
    machine.handle(arrived(1, 10, 11, 12, 13), 100.0)
    machine.handle(answered(next_run(machine, 100.0), 5), 100.0)
    assert machine.next_runs(100.0) == ()
    assert machine._drafts._seconds_each == 0.0

    machine.handle(arrived(1, 10, 11, 12, 13, num_tokens=5), 102.0)

    assert machine._drafts._seconds_each == 0.5
