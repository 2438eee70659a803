import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from teengined.scheduler.events import BlocksFound, PipelineReady, SpoolReported
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.scheduler import Scheduler
from teengined.service.prefix_keeper import PrefixKeeper
from teengined.service.prefix_manifest import PrefixManifest
from teengined.service.prefix_store import KeptPrefixes, PrefixStore
from tests.fakes.running_daemon import wait_until
from tests.unit.scheduler.machine import done, next_run, scheduler, step, submitted

DAY = 86400.0
LONG = tuple(range(10))


class Clock:
    seconds = 1e9


def keeper(tmp_path: Path, clock: Clock, machine: Scheduler, interval_seconds: float = 3600.0) -> PrefixKeeper:
    store = PrefixStore(
        root=tmp_path / "kept",
        key_path=tmp_path / "spool.key",
        max_bytes=1 << 20,
        max_age_seconds=DAY,
        now=lambda: clock.seconds,
    )
    kept = store.open("tiny", "this")
    assert kept is not None
    return PrefixKeeper(kept=kept, store=store, scheduler=machine, num_stages=1, interval_seconds=interval_seconds)


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


async def begun(tmp_path: Path, clock: Clock, kernels: tuple[str, ...] = ("one",)) -> tuple[PrefixKeeper, Scheduler]:
    machine = new_machine()
    found = keeper(tmp_path, clock, machine)
    await found.read()
    machine.handle(BlocksFound(blocks=found.begin(kernels)), 0.0)
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

        blocks = machine.keeping.snapshot().blocks()
        assert [block.token_ids for block in blocks] == [LONG[:4], LONG[4:8]]
        compute(machine, prompt=(*LONG[::-1],))
        await second.stop()
        await second.close()
        clock.seconds += DAY / 2 + 1
        third, machine = await begun(tmp_path, clock)
        assert [block.token_ids for block in machine.keeping.snapshot().blocks()] == [LONG[:1:-1][:4], LONG[:1:-1][4:8]]
        third.kept.close()

    asyncio.run(live())


def test_manifest_follows_what_changes_while_the_deployment_runs(tmp_path: Path):
    async def live() -> None:
        machine = new_machine()
        running = keeper(tmp_path, Clock(), machine, interval_seconds=0.001)
        await running.read()
        machine.handle(BlocksFound(blocks=running.begin(("one",))), 0.0)
        machine.handle(PipelineReady(), 0.0)
        compute(machine)
        await asyncio.to_thread(wait_until, (running.kept.path / "manifest").exists, "the manifest is written")
        manifest = running.kept.read()
        assert manifest is not None
        assert [block.token_ids for block in manifest.blocks] == [LONG[:4], LONG[4:8]]
        await running.stop()
        running.kept.close()

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
        await running.write()  # Nothing has changed since, but the disk.
        assert (running.kept.path / "manifest").exists()
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


class SlowDisk:
    """Writes that end when they are let go, and how many of them there were at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.num_now = self.num_most = 0
        write = KeptPrefixes.write

        def slow(kept: KeptPrefixes, manifest: PrefixManifest) -> str:
            self.num_now += 1
            self.num_most = max(self.num_most, self.num_now)
            self.begun.set()
            self.go.wait(60)
            self.num_now -= 1
            return write(kept, manifest)

        monkeypatch.setattr(KeptPrefixes, "write", slow)


def test_end_waits_for_a_write_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = SlowDisk(monkeypatch)

    async def live() -> None:
        machine = new_machine()
        running = keeper(tmp_path, Clock(), machine, interval_seconds=0.0)
        await running.read()
        running.begin(("one",))
        machine.handle(PipelineReady(), 0.0)
        compute(machine)
        await asyncio.to_thread(disk.begun.wait, 60)
        compute(machine, prompt=LONG[::-1])
        ending = asyncio.create_task(running.stop())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not ending.done()
        disk.go.set()
        await ending
        await running.close()
        again, machine = await begun(tmp_path, Clock())
        assert len(machine.keeping.snapshot().blocks()) == 4
        again.kept.close()

    asyncio.run(live())
    assert disk.num_most == 1


def test_disk_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    disk = SlowDisk(monkeypatch)
    monkeypatch.setattr("teengined.service.prefix_keeper._STOP_SECONDS", 0.001)

    async def live() -> None:
        running, machine = await begun(tmp_path, Clock())
        compute(machine)
        await running.stop()
        assert "was not written within" in caplog.text
        disk.go.set()
        running.kept.close()

    asyncio.run(live())


def test_what_goes_wrong_at_the_end_does_not_keep_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(_kept: KeptPrefixes, _manifest: PrefixManifest) -> str:
        raise ValueError("unforeseen")

    monkeypatch.setattr(KeptPrefixes, "write", fail)

    async def live() -> None:
        running, machine = await begun(tmp_path, Clock())
        compute(machine)
        await running.stop()
        await running.close()
        assert running.store.open("tiny", "this") is not None

    asyncio.run(live())
    assert "unforeseen" in caplog.text


def test_load_that_is_given_up_leaves_what_is_kept(tmp_path: Path):
    async def live() -> None:
        first, machine = await begun(tmp_path, Clock())
        compute(machine)
        await first.stop()
        await first.close()
        unread, unopened = keeper(tmp_path, Clock(), new_machine()), None
        await unread.stop()
        await unread.close()
        unopened = keeper(tmp_path, Clock(), new_machine())
        await unopened.read()
        await unopened.stop()
        await unopened.close()
        _, machine = await begun(tmp_path, Clock())
        assert len(machine.keeping.snapshot().blocks()) == 2

    asyncio.run(live())


def test_nothing_is_taken_over_from_other_kernels(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def live() -> None:
        first, machine = await begun(tmp_path, Clock())
        compute(machine)
        await first.stop()
        await first.close()
        other, machine = await begun(tmp_path, Clock(), kernels=("two",))
        assert machine.keeping.snapshot().blocks() == ()
        await other.stop()
        manifest = other.kept.read()
        assert manifest is not None
        assert (manifest.kernels, manifest.blocks) == (("two",), ())
        await other.close()
        assert list((tmp_path / "kept").iterdir()) == []

    asyncio.run(live())
    assert "it was computed with other kernels" in caplog.text


def test_what_becomes_too_old_while_it_is_in_use_is_written_down_no_more(tmp_path: Path):
    async def live() -> None:
        clock = Clock()
        running, machine = await begun(tmp_path, clock)
        compute(machine)
        await running.write()
        clock.seconds += DAY / 2
        compute(machine, prompt=LONG[::-1])
        await running.write()
        clock.seconds += DAY / 2 + 1
        await running.write()
        manifest = running.kept.read()
        assert manifest is not None
        assert [block.token_ids for block in manifest.blocks] == [LONG[:1:-1][:4], LONG[:1:-1][4:8]]
        await running.stop()
        running.kept.close()

    asyncio.run(live())
