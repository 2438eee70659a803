import pytest

from teengined.protocol.worker_messages import BlockCopy
from teengined.scheduler.events import Cancelled
from tests.unit.scheduler.machine import done, lengths, next_run, scheduler, step, submitted

PROMPT = tuple(range(10))


@pytest.fixture(params=[True, False], ids=["prefix cache", "no prefix cache"])
def machine(request):
    return scheduler(prefix_cache=request.param, max_step_tokens=20)


def test_prompt_is_computed_once_and_each_choice_runs_its_last_token(machine):
    machine.handle(submitted(1, 2, 3, prompt=PROMPT), 0.0)

    first = next_run(machine)
    second = step(machine, first, 7)

    assert lengths(first) == {1: 10}
    assert [(part.sequence_id, part.token_ids, part.start_position, part.sample) for part in second.parts] == [
        (1, (7,), 10, True),
        (2, (9,), 9, True),
        (3, (9,), 9, True),
    ]
    assert [opening.choice for opening in second.opened] == [1, 2]


def test_choices_share_the_blocks_of_the_prompt_and_copy_the_one_they_write_to(machine):
    machine.handle(submitted(1, 2, prompt=PROMPT), 0.0)
    first = next_run(machine)
    table = first.parts[0].new_blocks

    second = step(machine, first)

    assert second.parts[1].new_blocks == table
    assert second.copies == (BlockCopy(sequence_id=2, index=2, source=table[2], target=second.copies[0].target),)
    assert second.copies[0].target not in table
    assert machine.num_used_blocks == 4


def test_choice_begins_with_any_other_that_still_has_the_prompt(machine):
    machine.handle(submitted(1, 2, 3, prompt=PROMPT), 0.0)
    second = step(machine, next_run(machine))
    machine.handle(Cancelled(sequence_id=1), 0.0)

    third = step(machine, second)

    assert lengths(third) == {2: 1, 3: 1}


def test_choices_go_on_by_themselves_when_the_first_ended_before_its_prompt_was_computed(machine):
    machine.handle(submitted(1, 2, 3, prompt=PROMPT), 0.0)
    first = next_run(machine)
    machine.handle(Cancelled(sequence_id=1), 0.0)

    second = step(machine, first)
    third = step(machine, second)

    assert lengths(second) == {2: 10}
    assert lengths(third) == {2: 1, 3: 1}


def test_shared_tokens_of_choices_are_not_from_the_prefix_cache(machine):
    machine.handle(submitted(1, 2, prompt=PROMPT), 0.0)
    second = step(machine, next_run(machine))
    machine.handle(done(second), 0.0)

    assert (machine.num_cached_tokens(1), machine.num_cached_tokens(2)) == (0, 0)


def test_prompt_logprobs_are_wanted_of_the_first_choice_only(machine):
    machine.handle(submitted(1, 2, prompt=(1, 2), prompt_logprobs=1), 0.0)
    first = next_run(machine)

    assert [opening.score_start for opening in first.opened] == [1]
