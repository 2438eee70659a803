"""Guesses on their way through a scheduler: who gets some, what becomes of right and wrong ones."""

from typing import Any

import pytest

from teengined.core.errors import InternalError, NumericalFault
from teengined.core.request import FinishReason
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import Cancelled, Emit, Run, StepCompleted
from teengined.scheduler.speculation import Speculation
from tests.unit.scheduler.machine import EOS, done, ends_of, lengths, next_run, scheduler, submitted

PERIOD = (1, 2, 3, 4, 5, 6, 7, 8)


class Willing(Speculation):
    """Wants all guesses there are."""

    def num_wanted(self, request_class, source, num_decoding, seconds_each=0.0):
        return self.max_drafted


def machine_of(**changed):
    values: dict[str, Any] = {"max_drafted": 4, "max_step_tokens": 16, "num_blocks": 32} | changed
    machine = scheduler(**values)
    machine._state.speculation = Willing(max_drafted=machine.limits.max_drafted)
    return machine


def answered(run: Run, *token_ids: int, sequence_id: int = 1, **fields) -> StepCompleted:
    tokens = tuple(SampledToken(sequence_id=sequence_id, token_id=token_id) for token_id in token_ids)
    return StepCompleted(step=run.step, tokens=tokens, **fields)


def begin(machine, **more) -> Run:
    """Submit a prompt that goes round twice, draw what follows, and return the run after that."""
    machine.handle(submitted(1, prompt=PERIOD * 2, **{"max_tokens": 20} | more), 0.0)
    machine.handle(answered(next_run(machine), 1), 0.0)
    return next_run(machine)


def emitted(instructions) -> list[tuple[int, bool]]:
    return [(item.token.token_id, item.drafted) for item in instructions if isinstance(item, Emit)]


def test_what_followed_in_the_prompt_is_verified_behind_the_newest_token():
    (part,) = begin(machine_of()).parts

    assert (part.token_ids, part.num_drafted, part.start_position, part.sample) == ((1, 2, 3, 4, 5), 4, 16, True)


def test_right_guesses_take_no_step_of_their_own():
    machine = machine_of()

    instructions = machine.handle(answered(begin(machine), 2, 3, 4, 5, 6), 0.0)
    (part,) = next_run(machine).parts

    assert emitted(instructions) == [(2, True), (3, True), (4, True), (5, True), (6, False)]
    assert (part.token_ids, part.start_position) == ((6, 7, 8, 1, 2), 21)
    assert [(item.num_drafted, item.num_accepted) for item in machine.drafted] == [(4, 4)]


def test_tokens_behind_a_wrong_guess_are_run_again_at_their_places():
    machine = machine_of()

    instructions = machine.handle(answered(begin(machine), 2, 9 - 1), 0.0)
    (part,) = next_run(machine).parts

    assert emitted(instructions) == [(2, True), (8, False)]
    assert (part.token_ids[0], part.start_position) == (8, 18)
    assert [(item.num_drafted, item.num_accepted) for item in machine.drafted] == [(4, 1)]


def test_end_among_right_guesses_ends_the_answer_there():
    machine = machine_of()
    period = (1, 2, EOS, 4)
    machine.handle(submitted(1, prompt=period * 2, max_tokens=20), 0.0)
    machine.handle(answered(next_run(machine), 1), 0.0)
    run = next_run(machine)

    instructions = machine.handle(answered(run, 2, EOS, 4, 1), 0.0)

    assert run.parts[0].token_ids == (1, 2, EOS, 4, 1)
    assert emitted(instructions) == [(2, True), (EOS, True)]
    assert [end.reason for end in ends_of(instructions)] == [FinishReason.STOP]
    assert machine.num_used_blocks == 0


def test_no_more_is_guessed_than_the_answer_may_have():
    machine = machine_of()
    run = begin(machine, max_tokens=4)

    instructions = machine.handle(answered(run, 2, 3, 4), 0.0)

    assert lengths(run) == {1: 3}
    assert [end.reason for end in ends_of(instructions)] == [FinishReason.LENGTH]


def test_last_token_allowed_has_nothing_behind_it():
    assert lengths(begin(machine_of(), max_tokens=2)) == {1: 1}


@pytest.mark.parametrize(
    ("changed", "num_tokens"),
    [({"max_step_tokens": 3}, 3), ({"max_logit_rows": 2}, 2), ({"max_drafted": 0}, 1), ({"max_drafted": 1}, 2)],
)
def test_guesses_keep_within_the_step(changed, num_tokens: int):
    assert lengths(begin(machine_of(**changed))) == {1: num_tokens}


def test_every_decoding_sequence_comes_before_anyone_s_guesses():
    machine = machine_of(max_step_tokens=16, max_logit_rows=4)
    for sequence_id in (1, 2, 3):
        machine.handle(submitted(sequence_id, prompt=PERIOD * 2, max_tokens=20), 0.0)
    while any(machine.state_of(sequence_id) != "decode" for sequence_id in (1, 2, 3)):
        machine.handle(done(next_run(machine), token_id=1), 0.0)

    assert sorted(lengths(next_run(machine)).values()) == [1, 1, 2]


def test_half_of_the_room_is_left_to_prompts():
    machine = machine_of(max_step_tokens=9, max_drafted=8)
    machine.handle(submitted(1, prompt=PERIOD * 2, max_tokens=20), 0.0)
    machine.next_runs(0.0)
    machine.handle(StepCompleted(step=0, tokens=()), 0.0)
    machine.handle(answered(next_run(machine), 1), 0.0)
    machine.handle(submitted(2, prompt=tuple(range(20, 50))), 0.0)

    assert lengths(next_run(machine)) == {1: 4, 2: 5}  # Eight rows of the head are there, seven are left.


def test_guesses_take_no_blocks_that_others_may_need():
    # Five blocks hold the prompt and the first token; of seven, one is for the next tokens and one for growing.
    assert lengths(begin(machine_of(num_blocks=7, max_drafted=8), max_tokens=9)) == {1: 4}
    assert lengths(begin(machine_of(num_blocks=16, max_drafted=8), max_tokens=9)) == {1: 8}


def test_who_does_not_want_guesses_gets_none():
    machine = machine_of()
    machine.handle(submitted(1, prompt=PERIOD * 2, max_tokens=20, speculates=False), 0.0)
    machine.handle(answered(next_run(machine), 1), 0.0)

    assert lengths(next_run(machine)) == {1: 1}


def test_owner_is_charged_for_what_was_right():
    machine = machine_of()
    run = begin(machine)
    owner = machine._state.owners["someone"]
    before = owner.served_tokens

    machine.handle(answered(run, 2, 3, 7), 0.0)

    assert before == 17
    assert owner.served_tokens == 19


def test_blocks_that_right_guesses_fill_become_known():
    machine = machine_of()
    machine.handle(answered(begin(machine), 2, 3, 4, 5, 6), 0.0)
    machine.handle(Cancelled(sequence_id=1), 0.0)

    assert machine.num_cached_blocks == 5  # Of 21 tokens.


def test_numbers_that_are_none_behind_guesses_are_computed_again_without():
    machine = machine_of()
    run = begin(machine)
    fault = SampledToken(sequence_id=1, token_id=-1, fault=NumericalFault.code, message="NaN")
    good = SampledToken(sequence_id=1, token_id=2)

    instructions = machine.handle(StepCompleted(step=run.step, tokens=(good, fault)), 0.0)
    again = next_run(machine)

    assert emitted(instructions) == [(2, True)]
    assert (again.closed, again.parts[0].start_position) == ((1,), 0)  # Nothing of its blocks is trusted.
    assert again.parts[0].token_ids == PERIOD * 2
    second = machine.handle(answered(again), 0.0)
    assert second == ()
    last = next_run(machine)
    assert (last.parts[0].token_ids, last.parts[0].num_drafted) == ((1, 2), 0)
    (end,) = ends_of(machine.handle(StepCompleted(step=last.step, tokens=(fault,)), 0.0))
    assert isinstance(end.error, NumericalFault)


def test_more_tokens_than_there_were_guesses_are_a_mistake():
    machine = machine_of()

    (end,) = ends_of(machine.handle(answered(begin(machine), 2, 3, 4, 5, 6, 7), 0.0))

    assert isinstance(end.error, InternalError)
    assert end.error.message == "the last stage drew 6 of 5 tokens in step 1"


def test_steps_with_guesses_are_measured_by_their_rows():
    machine = machine_of()
    machine.handle(answered(begin(machine), 2, 3, seconds=3.0), 0.0)

    assert machine._state.speculation.times.seconds(5) == 3.0
