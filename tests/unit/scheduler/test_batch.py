from teengined.core.request import Goal
from teengined.scheduler.events import Cancelled
from tests.unit.scheduler.machine import done, lengths, next_run, scheduler, step, submitted


def decoding(machine, *sequence_ids: int):
    """Submit sequences that decode for long, and complete runs until all do."""
    for sequence_id in sequence_ids:
        machine.handle(submitted(sequence_id, prompt=(1,), max_tokens=50), 0.0)
    while any(machine.state_of(sequence_id) != "decode" for sequence_id in sequence_ids):
        for run in machine.next_runs(0.0):
            machine.handle(done(run), 0.0)
    return machine


def test_runs_in_flight_share_the_decoding_sequences_evenly():
    machine = decoding(scheduler(num_microbatches=2), 1, 2, 3, 4)

    first, second = machine.next_runs(0.0)

    assert lengths(first) == {1: 1, 2: 1}
    assert lengths(second) == {3: 1, 4: 1}
    assert machine.next_runs(0.0) == ()
    machine.handle(done(first), 0.0)
    assert lengths(next_run(machine)) == {1: 1, 2: 1}


def test_runs_in_flight_share_the_prompts_that_wait():
    machine = scheduler(num_microbatches=2, max_step_tokens=100)
    machine.handle(submitted(1, prompt=tuple(range(20))), 0.0)
    machine.handle(submitted(2, prompt=tuple(range(20, 40))), 0.0)

    assert [lengths(run) for run in machine.next_runs(0.0)] == [{1: 20}, {2: 20}]


def test_single_prompt_is_not_cut_for_the_sake_of_an_empty_run():
    machine = scheduler(num_microbatches=4, max_step_tokens=100)
    machine.handle(submitted(1, prompt=tuple(range(20))), 0.0)

    assert [lengths(run) for run in machine.next_runs(0.0)] == [{1: 20}]


def test_sequence_is_in_one_run_at_a_time():
    machine = scheduler(num_microbatches=3, max_step_tokens=4)
    machine.handle(submitted(1, prompt=tuple(range(20))), 0.0)

    assert [lengths(run) for run in machine.next_runs(0.0)] == [{1: 4}]


def test_sequences_take_turns_where_the_head_cannot_take_all():
    machine = decoding(scheduler(max_logit_rows=2), 1, 2)
    machine.handle(submitted(3, prompt=(1, 2)), 0.0)

    runs = [next_run(machine)]
    for _ in range(3):
        runs.append(step(machine, runs[-1]))

    assert [sorted(lengths(run)) for run in runs] == [[1, 2, 3], [1, 2], [1, 3], [2, 3]]


def test_last_token_of_a_prompt_waits_for_a_row_of_the_head():
    machine = decoding(scheduler(max_logit_rows=2), 1, 2)
    machine.handle(submitted(3, prompt=(1, 2, 3, 4)), 0.0)

    beside = next_run(machine)
    machine.handle(Cancelled(sequence_id=1), 0.0)
    after = step(machine, beside)

    assert lengths(beside) == {1: 1, 2: 1, 3: 3}
    assert lengths(after) == {2: 1, 3: 1}
    assert all(part.sample for part in after.parts)


def test_scored_prompt_goes_in_chunks_within_the_rows_of_the_head():
    machine = scheduler(max_logit_rows=3, max_step_tokens=100)
    machine.handle(submitted(1, prompt=tuple(range(10)), goal=Goal.SCORE, score_start=5), 0.0)

    first = next_run(machine)
    second = step(machine, first)

    # Row 4 is the first wanted: it tells of token 5.
    assert [len(run.parts[0].token_ids) for run in (first, second)] == [7, 3]


def test_waiting_sequence_begins_only_beside_room_for_those_that_run():
    machine = decoding(scheduler(num_blocks=16, block_tokens=4, max_step_tokens=100), 1, 2)
    machine.handle(submitted(3, prompt=tuple(range(13 * 4)), max_tokens=2), 0.0)

    alone = next_run(machine)

    assert machine.state_of(3) == "queued"  # 14 blocks are there, and two are the others' to grow into.
    machine.handle(Cancelled(sequence_id=1), 0.0)
    assert lengths(step(machine, alone))[3] == 52


def test_sequence_that_does_not_fit_is_not_overtaken():
    machine = decoding(scheduler(num_blocks=16, block_tokens=4, max_step_tokens=100), 1, 2)
    machine.handle(submitted(3, prompt=tuple(range(56)), max_tokens=2), 0.0)
    machine.handle(submitted(4), 0.0)

    assert sorted(lengths(next_run(machine))) == [1, 2]
    assert machine.num_waiting == 2


def test_blocks_that_a_prompt_still_needs_are_not_given_to_the_next_one():
    machine = scheduler(num_blocks=8, num_microbatches=2)
    machine.handle(submitted(1, prompt=tuple(range(20))), 0.0)
    machine.next_runs(0.0)
    machine.handle(submitted(2, prompt=tuple(range(30, 46))), 0.0)

    assert machine.next_runs(0.0) == ()
    assert machine.state_of(2) == "queued"


def test_prompts_beside_decoding_sequences_keep_to_the_pace_that_steps_allow():
    machine = decoding(scheduler(max_step_tokens=1000, prompt_stretch=2.0, num_blocks=1000, max_waiting_tokens=9999), 1)
    for _ in range(5):
        machine.handle(done(next_run(machine), seconds=0.010), 0.0)
    machine.handle(submitted(2, prompt=tuple(range(3000))), 0.0)

    seconds: list[float] = []
    for _ in range(40):
        run = next_run(machine)
        seconds.append(0.010 + 0.001 * lengths(run).get(2, 0))
        machine.handle(done(run, seconds=seconds[-1]), 0.0)

    assert max(seconds[20:]) <= 0.022
    assert min(seconds[20:]) >= 0.018


def test_prompts_that_run_alone_fill_the_step_whatever_the_pace():
    machine = scheduler(max_step_tokens=100, prompt_stretch=2.0, num_blocks=1000)
    machine.handle(submitted(1, prompt=tuple(range(300))), 0.0)

    assert lengths(next_run(machine)) == {1: 100}


def test_scored_prompt_goes_on_beside_more_decoding_sequences_than_the_head_has_rows():
    machine = decoding(
        scheduler(max_logit_rows=16, max_step_tokens=64, max_running=40, max_waiting=40, num_blocks=400), *range(1, 25)
    )
    machine.handle(submitted(99, prompt=tuple(range(20)), goal=Goal.SCORE), 0.0)

    runs = [next_run(machine)]  # It begins, and there are rows for it from the next step on.
    for _ in range(3):
        runs.append(step(machine, runs[-1]))

    assert [lengths(run).get(99, 0) for run in runs] == [0, 2, 2, 2]
    assert [len(run.parts) for run in runs] == [16, 15, 15, 15]


def test_decoding_sequences_get_on_beside_many_scored_prompts():
    machine = decoding(
        scheduler(max_logit_rows=16, max_step_tokens=64, max_running=40, max_waiting=40, num_blocks=400), *range(1, 17)
    )
    for number in range(20):
        machine.handle(submitted(100 + number, prompt=tuple(range(20)), goal=Goal.SCORE), 0.0)

    first = next_run(machine)
    second = step(machine, first)
    third = step(machine, second)

    assert [sum(sequence_id < 100 for sequence_id in lengths(run)) for run in (first, second, third)] == [16, 14, 14]


def test_single_row_of_the_head_is_shared_by_turns():
    machine = decoding(scheduler(max_logit_rows=1), 1, 2)
    machine.handle(submitted(99, prompt=(1, 2, 3, 4), goal=Goal.SCORE), 0.0)

    run = next_run(machine)
    seen = [run]
    while 99 not in lengths(run):
        run = step(machine, run)
        seen.append(run)

    assert len(seen) <= 9
    assert all(len(run.parts) == 1 for run in seen)


def test_sequence_with_one_token_to_run_takes_turns_with_those_that_have_all_rows():
    machine = decoding(scheduler(max_logit_rows=2), 1, 2)
    machine.handle(submitted(3, prompt=(1,)), 0.0)

    runs = [next_run(machine)]
    for _ in range(3):
        runs.append(step(machine, runs[-1]))

    assert sum(3 in lengths(run) for run in runs) == 2


def test_no_row_is_kept_where_nothing_is_to_be_told():
    machine = decoding(
        scheduler(max_logit_rows=16, max_step_tokens=64, max_running=40, max_waiting=40, num_blocks=400), *range(1, 25)
    )

    assert len(next_run(machine).parts) == 16
