import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from teengined.scheduler.events import BlocksFound, PipelineReady, SpoolReported
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.scheduler import Scheduler
from teengined.service.prefix_keeper import PrefixKeeper
from teengined.service.prefix_store import PrefixStore
from tests.fakes.running_daemon import wait_until
from tests.unit.scheduler.machine import done, next_run, scheduler, step, submitted

DAY = 86400.0
LONG = tuple(range(10))


class Clock:
    seconds = 1e9


def keeper(tmp_path: Path, clock: Clock, machine: Scheduler) -> PrefixKeeper:
    store = PrefixStore(
        root=tmp_path / "kept",
        key_path=tmp_path / "spool.key",
        max_bytes=1 << 20,
        max_age_seconds=DAY,
        now=lambda: clock.seconds,
    )
    kept = store.open("tiny", "this")
    assert kept is not None
    return PrefixKeeper(kept=kept, store=store, scheduler=machine, num_stages=1, interval_seconds=0.001)


def new_machine() -> Scheduler:
    return scheduler(
        spool=SpoolLimits(num_host_slots=4, num_disk_slots=8, outlives=True), max_step_tokens=16, ready=False
    )


def compute(machine: Scheduler, prompt: tuple[int, ...] = LONG) -> None:
    """Have the full blocks of a prompt computed and written."""
    machine.handle(submitted(1, prompt=prompt, max_tokens=1), 0.0)
    run = step(machine, next_run(machine))
    machine.handle(done(run), 0.0)
    machine.handle(SpoolReported(done=tuple(replace(move, digests=(b"d",)) for move in run.moves)), 0.0)


async def begun(tmp_path: Path, clock: Clock) -> tuple[PrefixKeeper, Scheduler]:
    machine = new_machine()
    found = keeper(tmp_path, clock, machine)
    machine.handle(BlocksFound(blocks=await found.read()), 0.0)
    machine.handle(PipelineReady(), 0.0)
    return found, machine


def test_next_deployment_finds_what_was_there_at_the_end(tmp_path: Path):
    async def live() -> None:
        clock = Clock()
        first, machine = await begun(tmp_path, clock)
        compute(machine)
        await first.stop()
        await first.close()
        clock.seconds += DAY / 2
        second, machine = await begun(tmp_path, clock)

        blocks = machine.keeping.blocks()
        assert [block.token_ids for block in blocks] == [LONG[:4], LONG[4:8]]
        compute(machine, prompt=(*LONG[::-1],))
        await second.stop()
        await second.close()
        clock.seconds += DAY / 2 + 1
        third, machine = await begun(tmp_path, clock)
        assert [block.token_ids for block in machine.keeping.blocks()] == [LONG[:1:-1][:4], LONG[:1:-1][4:8]]
        third.kept.close()

    asyncio.run(live())


def test_manifest_follows_what_changes_while_the_deployment_runs(tmp_path: Path):
    async def live() -> None:
        running, machine = await begun(tmp_path, Clock())
        running.begin()
        compute(machine)
        await asyncio.to_thread(wait_until, (running.kept.path / "manifest").exists, "the manifest is written")
        await running.stop()

    asyncio.run(live())


def test_what_nothing_is_left_of_leaves_no_file(tmp_path: Path):
    async def live() -> None:
        running, _ = await begun(tmp_path, Clock())
        (running.kept.path / "stage0").write_bytes(b"x")
        await running.stop()
        await running.close()
        assert list((tmp_path / "kept").iterdir()) == []

    asyncio.run(live())


def test_disk_that_will_not_is_told_and_nothing_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def live() -> None:
        running, machine = await begun(tmp_path, Clock())
        compute(machine)
        (running.kept.path / "manifest.new").mkdir()
        await running.write()
        assert "cannot be written" in running.problem
        (running.kept.path / "manifest.new").rmdir()
        await running.write()  # Nothing has changed since.
        assert not (running.kept.path / "manifest").exists()
        compute(machine, prompt=LONG[::-1])
        await running.write()
        assert running.problem == ""
        running.kept.close()

    asyncio.run(live())


def test_end_waits_until_everything_is_on_disk(tmp_path: Path):
    async def live() -> None:
        running, machine = await begun(tmp_path, Clock())
        machine.handle(submitted(1, prompt=LONG, max_tokens=1), 0.0)
        run = step(machine, next_run(machine))
        waiting = asyncio.create_task(running.wait_calm())
        await asyncio.sleep(0)
        machine.handle(done(run), 0.0)
        running.note()
        await asyncio.sleep(0)
        assert not waiting.done()
        machine.handle(SpoolReported(done=tuple(replace(move, digests=(b"d",)) for move in run.moves)), 0.0)
        running.note()
        await waiting
        running.kept.close()

    asyncio.run(live())


def test_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("teengined.service.prefix_keeper._SAVE_SECONDS", 0.001)

    async def live() -> None:
        running, machine = await begun(tmp_path, Clock())
        machine.handle(submitted(1, prompt=LONG, max_tokens=1), 0.0)
        step(machine, next_run(machine))
        await running.wait_calm()
        running.kept.close()

    asyncio.run(live())
    assert "KV was not written within" in caplog.text
