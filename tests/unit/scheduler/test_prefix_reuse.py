import pytest

from teengined.core.request import Goal
from teengined.scheduler.events import StepCompleted
from tests.unit.scheduler.machine import done, ends_of, lengths, next_run, scheduler, submitted

PROMPT = tuple(range(8))


def after_one_answer(**more):
    """Return a scheduler that has computed the prompt for a request that is over."""
    machine = scheduler(**more)
    machine.handle(submitted(1, prompt=PROMPT, max_tokens=1), 0.0)
    machine.handle(done(next_run(machine)), 0.0)
    return machine


def test_prompt_that_is_known_runs_its_last_token_only_and_the_answer_says_so():
    machine = after_one_answer()
    machine.handle(submitted(2, prompt=PROMPT, max_tokens=1), 1.0)

    run = next_run(machine)

    (part,) = run.parts
    assert (part.token_ids, part.start_position, len(part.new_blocks)) == ((7,), 7, 2)
    assert [(copy.index, copy.source) for copy in run.copies] == [(1, part.new_blocks[1])]
    assert machine.num_cached_tokens(2) == 7
    assert [end.cached_tokens for end in ends_of(machine.handle(done(run), 1.0))] == [7]


def test_longer_prompt_begins_after_what_is_known():
    machine = after_one_answer()
    machine.handle(submitted(2, prompt=(*PROMPT, 50, 51)), 1.0)

    run = next_run(machine)

    assert (run.parts[0].token_ids, run.parts[0].start_position, run.copies) == ((50, 51), 8, ())


def test_answers_are_known_as_well_as_prompts():
    machine = scheduler()
    machine.handle(submitted(1, prompt=PROMPT[:6], max_tokens=4), 0.0)
    for _ in range(4):
        machine.handle(done(next_run(machine), 5), 0.0)
    machine.handle(submitted(2, prompt=(*PROMPT[:6], 5, 5, 5, 60)), 1.0)

    assert next_run(machine).parts[0].start_position == 8


def test_other_salts_share_nothing():
    machine = after_one_answer()
    machine.handle(submitted(2, prompt=PROMPT, salt=b"another"), 1.0)

    assert lengths(next_run(machine)) == {2: 8}


def test_without_a_prefix_cache_nothing_is_kept():
    machine = after_one_answer(prefix_cache=False)
    machine.handle(submitted(2, prompt=PROMPT), 1.0)

    assert machine.num_cached_blocks == 0
    assert lengths(next_run(machine)) == {2: 8}


def test_cached_blocks_give_way_to_what_runs():
    machine = after_one_answer(num_blocks=3)
    machine.handle(submitted(2, prompt=tuple(range(20, 28)), max_tokens=4), 1.0)

    next_run(machine)

    assert (machine.num_used_blocks, machine.num_cached_blocks) == (2, 1)


def test_known_prompt_that_leaves_no_block_for_a_copy_is_used_up_to_its_last_block():
    machine = scheduler(num_blocks=2)
    machine.handle(submitted(1, prompt=PROMPT, max_tokens=1), 0.0)
    machine.handle(done(next_run(machine)), 0.0)
    machine.handle(submitted(2, prompt=PROMPT, max_tokens=1), 1.0)

    run = next_run(machine)

    assert (run.parts[0].start_position, run.copies) == (4, ())


@pytest.mark.parametrize(
    ("wanted", "start_position"),
    [
        ({"goal": Goal.SCORE, "score_start": 6}, 5),
        ({"goal": Goal.SCORE, "score_start": 0}, 0),
        ({"goal": Goal.EMBED, "pooling": "mean"}, 0),
        ({"goal": Goal.EMBED, "pooling": "last"}, 7),
        ({"prompt_logprobs": 0}, 0),
    ],
)
def test_rows_whose_logits_or_states_are_wanted_run_whatever_is_known(wanted, start_position):
    machine = after_one_answer()
    machine.handle(submitted(2, prompt=PROMPT, **wanted), 1.0)

    assert next_run(machine).parts[0].start_position == start_position


def test_two_that_run_side_by_side_know_nothing_of_each_other_before_a_step_is_over():
    machine = scheduler(max_step_tokens=40, num_microbatches=2)
    machine.handle(submitted(1, prompt=PROMPT), 0.0)
    machine.next_runs(0.0)
    machine.handle(submitted(2, prompt=PROMPT), 0.0)

    (second,) = machine.next_runs(0.0)

    assert second.parts[0].start_position == 0


def test_sequence_that_found_no_blocks_begins_once_another_has_computed_what_it_needs():
    machine = scheduler(num_blocks=9, num_microbatches=2)
    prompt = tuple(range(20))
    machine.handle(submitted(1, prompt=prompt), 0.0)
    (run,) = machine.next_runs(0.0)
    machine.handle(submitted(2, prompt=prompt), 0.0)
    assert machine.next_runs(0.0) == ()

    machine.handle(done(run), 0.0)

    assert [lengths(later) for later in machine.next_runs(0.0)] == [{1: 8}, {2: 8}]


def test_owner_is_not_charged_for_what_was_known():
    machine = after_one_answer()
    machine.handle(submitted(2, prompt=PROMPT, owner="another"), 1.0)

    next_run(machine)

    assert machine._state.owners["another"].served_tokens == 1


def test_answer_of_a_step_that_nobody_knows_changes_nothing():
    machine = after_one_answer()

    assert machine.handle(StepCompleted(step=99, tokens=()), 1.0) == ()
    assert machine.handle(StepCompleted(step=0, tokens=()), 1.0) == ()
