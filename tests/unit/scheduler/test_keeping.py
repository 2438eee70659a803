"""What is on disk when a deployment ends begins the sequences of the next one, and nothing else does."""

import random
from dataclasses import replace

import pytest

from teengined.core.errors import WorkerLost
from teengined.protocol.worker_messages import SlotMove
from teengined.scheduler.events import BlocksFound, PipelineLost, PipelineReady, Run, SpoolReported, Tick
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.restore_costs import Speeds
from teengined.scheduler.scheduler import Scheduler
from tests.unit.scheduler.machine import done, next_run, scheduler, step, submitted
from tests.unit.scheduler.model_worker import ModelWorker, fingerprint
from tests.unit.scheduler.test_simulation import Story

LONG = tuple(range(10))
KEPT = SpoolLimits(num_host_slots=4, num_disk_slots=8, outlives=True)


def written(run: Run) -> SpoolReported:
    """Return the report that everything is on disk."""
    return SpoolReported(done=tuple(replace(move, digests=(b"d",)) for move in run.moves))


def ended(**changed) -> tuple[Scheduler, Run]:
    """Return a scheduler whose only sequence, of two full blocks, has just ended, and the run that follows."""
    machine = scheduler(spool=replace(KEPT, **changed), max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=1), 0.0)
    return machine, step(machine, next_run(machine))


def test_full_blocks_are_brought_to_disk_when_nothing_runs_any_more():
    machine, run = ended()

    assert (run.parts, run.closed, run.restored) == ((), (1,), ())
    assert [copy.num_tokens for copy in run.spooled] == [4, 4]
    assert [move.to_disk for move in run.moves] == [True, True]
    assert machine.keeping.is_busy
    machine.handle(done(run), 0.0)
    assert machine.keeping.is_busy
    machine.handle(written(run), 0.0)
    assert machine.next_runs(0.0) == ()
    assert not machine.keeping.is_busy
    assert [block.parent for block in machine.keeping.snapshot().blocks()] == [-1, 0]


def test_each_block_is_written_once():
    machine, run = ended()
    machine.handle(done(run), 0.0)
    machine.handle(written(run), 0.0)
    machine.handle(submitted(2, prompt=LONG, max_tokens=1), 0.0)
    again = next_run(machine)
    machine.handle(done(again), 0.0)

    assert again.parts[0].start_position == 8
    (closing,) = machine.next_runs(0.0) or (None,)
    assert closing is None


def test_nothing_gives_way_in_host_memory_for_what_is_saved():
    machine, run = ended(num_host_slots=1)
    machine.handle(done(run), 0.0)

    assert len(run.spooled) == 1
    assert machine.next_runs(0.0) == ()
    machine.handle(written(run), 0.0)
    (rest,) = machine.next_runs(0.0)
    assert (len(rest.spooled), len(rest.moves)) == (1, 1)
    assert machine.tiers.num_dropped == 0


def test_request_that_comes_meanwhile_goes_first():
    machine, run = ended(max_restored_blocks=1)
    machine.handle(submitted(2, prompt=LONG[::-1], max_tokens=4), 0.0)

    follows = step(machine, run)

    assert [part.sequence_id for part in follows.parts] == [2]
    assert follows.spooled == ()


def test_without_the_setting_nothing_is_written():
    machine = scheduler(spool=replace(KEPT, outlives=False), max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=1), 0.0)
    machine.handle(done(next_run(machine)), 0.0)

    assert machine.next_runs(0.0) == ()


def test_what_is_computed_sooner_than_fetched_is_not_saved():
    slow = Speeds(token_seconds=1e-6, host_block_seconds=1.0)
    machine = scheduler(spool=replace(KEPT, speeds=slow), max_step_tokens=16)
    machine.handle(submitted(1, prompt=LONG, max_tokens=1), 0.0)
    machine.handle(done(next_run(machine)), 0.0)

    assert machine.next_runs(0.0) == ()
    assert not machine.keeping.is_busy


def test_full_disk_ends_the_saving_and_it_goes_on_later():
    machine, run = ended()
    machine.handle(done(run), 0.0)
    machine.handle(SpoolReported(failed=run.moves), 0.0)

    assert machine.next_runs(0.0) == ()
    assert not machine.keeping.is_busy
    assert machine.keeping.snapshot().blocks() == ()
    machine.handle(Tick(), 60.0)
    assert len(next_run(machine, 60.0).moves) == 2


def test_another_scheduler_begins_with_what_was_found():
    machine, run = ended()
    machine.handle(done(run), 0.0)
    machine.handle(written(run), 0.0)
    other = scheduler(spool=KEPT, max_step_tokens=16, ready=False)
    other.handle(submitted(7, prompt=LONG, max_tokens=1), 0.0)
    other.handle(submitted(8, prompt=LONG, max_tokens=1, salt=b"another"), 0.0)
    other.handle(BlocksFound(blocks=machine.keeping.snapshot().blocks()), 0.0)
    other.handle(PipelineReady(), 0.0)

    first = next_run(other)

    assert [(move.disk, move.to_disk, move.digests) for move in first.moves] == [
        (move.disk, False, (b"d",)) for move in run.moves
    ]
    assert [part.sequence_id for part in first.parts] == [8]
    other.handle(SpoolReported(done=first.moves), 0.0)
    second = step(other, first)
    assert [copy.num_tokens for copy in second.restored] == [4, 4]
    assert other.num_cached_tokens(7) == 8


class Reloaded(Story):
    """A story in which the model is unloaded and loaded again, by a scheduler that knows what is in the files."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        rng = random.Random(seed + 1)
        spool = replace(
            self.limits.spool,
            num_host_slots=rng.choice([1, 3, 8]),
            num_disk_slots=rng.choice([2, 6, 40]),
            outlives=True,
            speeds=Speeds(),
        )
        self.limits = replace(self.limits, prefix_cache=True, spool=spool)
        self.worker = ModelWorker(self.limits.num_blocks, self.limits.block_tokens, spool)
        self.asked.clear()
        self.machine, self.ready = Scheduler(self.policy, self.limits), True
        self.num_found = self.num_used = 0

    def reload(self) -> None:
        self.take(PipelineLost(error=WorkerLost("unloaded")))
        self.asked.clear()
        blocks = self.machine.keeping.snapshot().blocks()
        self.check_chains(blocks)
        self.num_found += len(blocks)
        self.machine = Scheduler(self.policy, self.limits, ready=False)
        self.take(BlocksFound(blocks=blocks))
        self.check_slots()
        assert len(self.machine.keeping.snapshot().blocks()) == len(blocks)
        self.take(PipelineReady())

    def check_chains(self, blocks) -> None:
        """What is told of a block is what its slot holds."""
        prints: dict[int, list[bytes]] = {}
        for place, block in enumerate(blocks):
            before = prints[block.parent][-1] if block.parent >= 0 else block.salt
            prints[place] = fingerprints(before, block.token_ids)
            assert self.worker.disk[block.slot] == prints[place]


def fingerprints(before: bytes, token_ids: tuple[int, ...]) -> list[bytes]:
    prints: list[bytes] = []
    for token_id in token_ids:
        before = fingerprint(before, token_id)
        prints.append(before)
    return prints


@pytest.mark.parametrize("group", range(8))
def test_deployments_that_follow_each_other_never_begin_with_a_wrong_block(group: int, seed: int):
    num_found = num_fetched = 0
    for number in range(40):
        story = Reloaded(seed + 1000 * group + number)
        try:
            for _ in range(3):
                story.play(60)
                num_fetched += story.machine.tiers.num_fetched
                story.reload()
            story.play(60)
            num_fetched += story.machine.tiers.num_fetched
            story.check_ends()
        except Exception as problem:
            problem.add_note(f"in story {seed + 1000 * group + number}")
            raise
        num_found += story.num_found
    assert num_found > 0
    assert num_fetched > 0


def test_move_that_was_under_way_is_not_told_of():
    machine, run = ended()
    machine.handle(done(run), 0.0)
    first = SlotMove(host=run.moves[0].host, disk=run.moves[0].disk, to_disk=True, digests=(b"d",))
    machine.handle(SpoolReported(done=(first,)), 0.0)
    machine.handle(PipelineLost(error=WorkerLost("killed")), 0.0)

    assert [block.slot for block in machine.keeping.snapshot().blocks()] == [first.disk]


def test_stages_that_come_back_with_other_kernels_begin_with_nothing():
    for otherwise in (False, True):
        machine, run = ended()
        machine.handle(done(run), 0.0)
        machine.handle(written(run), 0.0)
        version = machine.keeping.version
        machine.handle(PipelineLost(error=WorkerLost("killed")), 0.0)
        machine.handle(PipelineReady(computes_otherwise=otherwise), 0.0)

        assert len(machine.keeping.snapshot().blocks()) == (0 if otherwise else 2)
        assert (machine.keeping.version != version) == otherwise
        machine.handle(submitted(2, prompt=LONG, max_tokens=1), 0.0)
        (follows,) = machine.next_runs(0.0)
        assert bool(follows.parts) == otherwise
