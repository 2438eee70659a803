"""Blocks that a sequence lost, on their way back to it."""

from typing import Any

from teengined.protocol.worker_messages import SlotMove
from teengined.scheduler.events import Cancelled, Run, SpoolReported, Tick
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.restore_costs import Speeds
from teengined.scheduler.scheduler import Scheduler
from tests.unit.scheduler.machine import done, next_run, scheduler, step, submitted

LONG = tuple(range(10))


def preempted(**spool: Any) -> Scheduler:
    """Return a scheduler whose one sequence of three blocks, the last half full, has just lost them."""
    options: dict[str, Any] = {"num_host_slots": 8} | spool
    machine = scheduler(spool=SpoolLimits(**options), max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=9), 0.0)
    machine.handle(done(next_run(machine)), 0.0)
    state = machine._state
    state.preempt(state.sequences[1], 0.0)
    pool = state.cache.pool
    for block_id in [pool.allocate() for _ in range(pool.num_available)]:
        pool.release(block_id)
    return machine


def to_disk(machine: Scheduler) -> None:
    """Have everything in host memory written, and its slots taken by others since."""
    state = machine._state
    state.spool.write_early = True
    for move in state.spool.take_moves():
        written = SlotMove(host=move.host, disk=move.disk, to_disk=True, digests=(b"d",))
        machine.handle(SpoolReported(done=(written,)), 0.0)
    state.cache.tiers.take_copies()
    for stored in [state.spool.store() for _ in range(state.spool.num_host_slots)]:
        assert stored is not None
        state.spool.drop(stored)


def test_what_is_in_host_memory_comes_back_with_the_step_that_goes_on():
    machine = preempted()
    run = next_run(machine)

    assert [copy.num_tokens for copy in run.spooled] == [2, 4, 4]
    assert [copy.num_tokens for copy in run.restored] == [4, 4, 2]
    (part,) = run.parts
    assert (part.start_position, len(part.token_ids)) == (10, 1)
    assert part.new_blocks == tuple(copy.block for copy in run.restored)


def test_long_sequence_comes_back_over_several_steps():
    machine = preempted(max_restored_blocks=2)
    first = next_run(machine)
    second = step(machine, first)

    assert (len(first.restored), first.parts) == (2, ())
    assert (len(second.restored), len(second.parts)) == (1, 1)


def test_what_is_on_disk_is_fetched_before_and_waited_for():
    machine = preempted(num_disk_slots=8)
    to_disk(machine)
    run = next_run(machine)

    assert (run.parts, [move.to_disk for move in run.moves]) == ((), [False] * 3)
    machine.handle(done(run), 0.0)
    assert machine.next_runs(0.0) == ()
    machine.handle(SpoolReported(done=run.moves[:2]), 0.0)
    assert machine.next_runs(0.0) == ()
    machine.handle(SpoolReported(done=run.moves[2:]), 0.0)
    again = next_run(machine)
    assert (len(again.restored), again.parts[0].start_position) == (3, 10)


def fetching() -> tuple[Scheduler, Run]:
    machine = preempted(num_disk_slots=8)
    to_disk(machine)
    run = next_run(machine)
    machine.handle(done(run), 0.0)
    return machine, run


def test_fetch_that_fails_leaves_the_rest_to_be_computed():
    machine, run = fetching()
    machine.handle(SpoolReported(done=run.moves[:1], failed=run.moves[1:]), 0.0)
    again = next_run(machine)

    assert (len(again.restored), again.parts[0].start_position) == (1, 4)
    assert machine.tiers.num_recomputed_tokens == 6
    assert machine.tiers.num_failed == 2


def test_fetch_is_waited_for_no_longer_than_computing_takes():
    machine, _ = fetching()
    machine.handle(Tick(), 1e6)
    (run,) = machine.next_runs(1e6)

    assert (run.restored, run.parts[0].start_position) == ((), 0)


def test_sequence_that_ends_while_it_waits_leaves_nothing_behind():
    machine, run = fetching()
    machine.handle(Cancelled(sequence_id=1), 0.0)
    machine.handle(SpoolReported(done=run.moves), 0.0)

    spool = machine._state.spool
    assert spool.num_moving == 0
    assert all(stored.num_pins == 0 for stored in (*spool._clean.values(), *spool._dirty.values()))
    assert spool.num_host == 2  # The full blocks, which others may begin with; its own part is gone.


def test_disk_that_is_full_is_left_alone_for_a_while():
    machine = preempted(num_disk_slots=8)
    machine._state.spool.write_early = True
    run = step(machine, next_run(machine))
    assert run.moves
    machine.handle(SpoolReported(failed=run.moves), 1.0)
    assert machine._state.spool.take_moves() == ()
    machine.handle(Tick(), 2.0)
    assert not machine._state.spool.may_write
    machine.handle(Tick(), 12.0)
    assert machine._state.spool.may_write


def test_running_sequence_is_copied_every_so_many_tokens():
    machine = scheduler(spool=SpoolLimits(num_host_slots=8, num_disk_slots=8, checkpoint_tokens=8), max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=20), 0.0)
    runs = [next_run(machine)]
    for _ in range(9):
        runs.append(step(machine, runs[-1]))

    copied = {number: len(run.spooled) for number, run in enumerate(runs) if run.spooled}
    assert copied == {1: 2, 9: 2}
    assert all(move.to_disk for run in runs for move in run.moves)
    assert sum(len(run.moves) for run in runs) == 4


def checkpoints(run_seconds: list[float], **spool: Any) -> dict[int, int]:
    """Return how many blocks each run copied that copied any, of a sequence that runs at these times."""
    options: dict[str, Any] = {"num_host_slots": 8, "num_disk_slots": 8} | spool
    machine = scheduler(spool=SpoolLimits(**options), max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=20), run_seconds[0])
    runs = [next_run(machine, run_seconds[0])]
    for now_seconds in run_seconds[1:]:
        runs.append(step(machine, runs[-1], now_seconds=now_seconds))
    return {number: len(run.spooled) for number, run in enumerate(runs) if run.spooled}


def test_running_sequence_is_copied_every_so_many_seconds():
    # It holds 2 full blocks after the first run, 3 after the third, 4 after the seventh.
    times = [100.0, 101.0, 104.9, 105.0, 106.0, 107.0, 108.0, 109.0, 109.9, 110.0]

    assert checkpoints(times, checkpoint_seconds=5.0) == {3: 3, 9: 1}


def test_whichever_of_tokens_and_seconds_comes_first_makes_a_checkpoint_and_both_count_from_it():
    times = [0.0, 1.0, *[5.5] * 7, 6.0]

    assert checkpoints(times, checkpoint_seconds=5.0, checkpoint_tokens=8) == {1: 2, 9: 2}


def test_without_an_interval_nothing_is_copied_that_may_stay():
    assert checkpoints([0.0, 1e6, 2e6]) == {}


def test_checkpoint_that_is_too_much_for_one_step_goes_on_in_the_next():
    assert checkpoints([0.0, 5.0, 5.1, 5.2], checkpoint_seconds=5.0, max_restored_blocks=1) == {1: 1, 2: 1, 3: 1}


def test_time_begins_anew_for_a_sequence_that_was_preempted():
    machine = scheduler(spool=SpoolLimits(num_host_slots=8, num_disk_slots=8, checkpoint_seconds=5.0))
    machine.handle(submitted(1, prompt=LONG, max_tokens=9), 0.0)
    machine.handle(done(next_run(machine)), 0.0)
    sequence = machine._state.sequences[1]
    machine._state.preempt(sequence, 1.0)
    next_run(machine, 7.0)

    assert sequence.checkpointed_seconds == 7.0


def test_disk_is_written_to_once_contexts_are_deep_enough_to_be_read_sooner_than_computed():
    # In a context of n tokens a block in the middle, from n / 2 - 2 on, takes 0.01 * (4 * (n / 2 - 2) + 10) seconds.
    speeds = Speeds(token_seconds=0.0, position_seconds=0.01, disk_block_seconds=0.45)
    spool = SpoolLimits(num_host_slots=8, num_disk_slots=8, checkpoint_tokens=4, speeds=speeds)
    machine = scheduler(spool=spool, max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=20), 0.0)
    runs = [next_run(machine)]
    for _ in range(16):
        runs.append(step(machine, runs[-1]))

    num_computed = [run.parts[0].start_position for run in runs]
    assert min(number for number, run in zip(num_computed, runs, strict=True) if run.spooled) == 10
    assert min(number for number, run in zip(num_computed, runs, strict=True) if run.moves) == 22
