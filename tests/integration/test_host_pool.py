"""A real daemon, real workers of devices with memory of their own, and one pool of host memory between them."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.private_daemon import PrivateDaemon
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.errors import PackageCorrupt, UnknownModel, WorkerLost
from teengined.core.memory_limits import read_host_memory
from teengined.core.plan import Tier
from teengined.core.sampling import SamplingParams
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.command import SynthCommand, run_synth
from teengined.protocol.messages import Deployment, Generate, LoadModel, PlanModel, TokenChunk
from tests.fakes.running_daemon import wait_until
from tests.fakes.tiny_models import tiny_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MIB = 1 << 20
FAKES = Path(__file__).parents[1] / "fakes"
SETTINGS = """
[worker]
stop_timeout = "2s"
restart_delay = "50ms"
{worker}
[host]
{host}
[streaming]
max_step_tokens = 16
[batching]
max_logit_rows = 4
[planning]
measure_command = ["{python}", "{measure}", "--host-bytes", "{host_bytes}"]
context = 64
num_slots = 1
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a Llama of eight layers of some 2.6 MB, of noise."""
    directory = tmp_path_factory.mktemp("pool")
    shape = directory / "shape.json"
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "head_dim": 64}
    shape.write_text(json.dumps(tiny_config("llama").to_dict() | wide, default=str))
    command = SynthCommand(name="noise", store=directory / "store", like=str(shape), precision="fp32")
    run_synth(command, PluginRegistry.load(), lambda _progress: None)
    return directory / "store"


@contextmanager
def running(
    store: Path, directory: Path, *, host: str = "", worker: str = "", host_bytes: int = 64 * MIB
) -> Generator[PrivateDaemon]:
    specs = [DeviceSpec(id=f"null:{index}", driver="null", memory_bytes=64 * MIB) for index in range(2)]
    measure = FAKES / "fake_measure.py"
    settings = SETTINGS.format(python=sys.executable, measure=measure, host=host, worker=worker, host_bytes=host_bytes)
    with PrivateDaemon(directory / "state", store, specs, settings) as daemon:
        yield daemon


@pytest.fixture
def daemon(store: Path, tmp_path: Path) -> Iterator[PrivateDaemon]:
    with running(store, tmp_path) as started:
        yield started


def load(client: Client, name: str, device: str) -> Deployment:
    plan = PlanModel(model="noise", device_ids=(device,), resident_fraction=0.0)
    return client.load(LoadModel(plan=plan, name=name)).deployment


def ask(client: Client, name: str, num_tokens: int = 6) -> list[int]:
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=0.0)
    events = client.generate(Generate(model=name, token_ids=(5, 6, 7), sampling=sampling))
    return [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]


def odd_worker(*arguments: str) -> str:
    words = (sys.executable, str(FAKES / "odd_worker.py"), *arguments)
    return f"command = {json.dumps(words)}"


def worker_pids(client: Client) -> list[int]:
    return [device.worker_pid for device in client.status().devices if device.worker_pid]


def locked_bytes(pid: int) -> int:
    found = re.search(r"VmLck:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def log_of(daemon: PrivateDaemon) -> str:
    return daemon.log_file.read_text()


def in_pool(pid: int) -> dict[str, int]:
    """Return the bytes of pool memory that a process has mapped, by what smaps calls them."""
    found: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = "memfd:teengine-unit" in line
            if inside:
                found["writable"] = found.get("writable", 0) + (line.split()[1][1] == "w")
        elif inside and re.match(r"\w+:\s+\d+ kB", line):
            key, value = line.split(":")
            found[key] = found.get(key, 0) + int(value.split()[0]) * 1024
    return found


def test_two_models_on_two_devices_share_what_waits_in_host_memory(daemon: PrivateDaemon) -> None:
    client = daemon.client
    first = load(client, "first", "null:0")
    alone = client.status().host_pool
    expected = ask(client, "first")
    second = load(client, "second", "null:1")
    both = client.status().host_pool

    assert ask(client, "second") == expected
    tiers = {unit.tier for unit in first.plan.stages[0].units}
    assert Tier.HOST in tiers
    assert first.host_pool_bytes == second.host_pool_bytes == alone.planned_bytes > 16 * MIB
    assert (both.planned_bytes, both.filled_bytes) == (alone.planned_bytes, alone.planned_bytes)
    assert both.unshared_bytes == 2 * alone.unshared_bytes
    metrics = {family.name: family.series[0].value for family in client.metrics().families if len(family.series) == 1}
    assert metrics["teengine_host_pool_planned_bytes"] == both.planned_bytes
    assert metrics["teengine_host_pool_unshared_bytes"] == both.unshared_bytes
    mapped = [in_pool(pid) for pid in worker_pids(client)]
    assert [each["Rss"] for each in mapped] == [both.planned_bytes] * 2
    assert sum(each["Pss"] for each in mapped) == pytest.approx(both.planned_bytes, rel=0.01)
    assert [each["writable"] for each in mapped] == [0, 0]

    client.unload("first")
    assert ask(client, "second") == expected
    assert client.status().host_pool.planned_bytes == alone.planned_bytes
    client.unload("second")
    assert (client.status().host_pool.planned_bytes, client.status().host_pool.num_units) == (0, 0)
    assert [in_pool(pid) for pid in worker_pids(client)] == [{}, {}]


def test_a_worker_that_dies_takes_nothing_from_others_and_finds_everything_when_it_comes_back(
    daemon: PrivateDaemon,
) -> None:
    client = daemon.client
    load(client, "first", "null:0")
    load(client, "second", "null:1")
    before = client.status().host_pool
    expected = ask(client, "second")
    pids = worker_pids(client)

    os.kill(pids[0], signal.SIGKILL)

    assert ask(client, "second") == expected
    wait_until(
        lambda: pids[0] not in worker_pids(client) and client.deployments().deployments[0].state == "ready",
        "the first model is back, on another process",
    )
    assert client.status().host_pool == before
    assert ask(client, "first") == expected


def test_a_unit_that_a_worker_left_half_filled_is_filled_by_the_one_that_waits_for_it(
    store: Path, tmp_path: Path
) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()
    with (
        running(store, tmp_path, worker=odd_worker("--die-while-filling", str(flags))) as daemon,
        Client(daemon.endpoint, timeout_seconds=60) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        failing = threads.submit(load, daemon.client, "first", "null:0")
        wait_until((flags / "half").exists, "a unit is half filled")
        assert other.status().host_pool.filled_bytes == 0
        waiting = threads.submit(load, other, "second", "null:1")
        wait_until((flags / "waiting").exists, "another worker waits for it")
        (flags / "die").touch()

        with pytest.raises(WorkerLost, match="SIGKILL"):
            failing.result(60)
        second = waiting.result(60)
        assert other.status().host_pool.filled_bytes == second.host_pool_bytes
        expected = ask(other, "second")
        load(daemon.client, "first", "null:0")
        assert ask(daemon.client, "first") == expected


def test_the_pool_holds_no_more_than_its_budget_and_the_rest_streams_from_disk(store: Path, tmp_path: Path) -> None:
    with running(store, tmp_path, host='memory = "9MiB"') as daemon:
        first = load(daemon.client, "first", "null:0")
        status = daemon.client.status().host_pool

        tiers = [unit.tier for unit in first.plan.stages[0].units]
        assert Tier.DISK in tiers
        assert Tier.HOST in tiers
        assert 0 < status.planned_bytes <= status.budget_bytes == 9 * MIB
        expected = ask(daemon.client, "first")
        # The pool is full: a second model has what it shares, and streams as much as the first.
        second = load(daemon.client, "second", "null:1")
        assert second.plan.stages[0].units == first.plan.stages[0].units
        assert daemon.client.status().host_pool.planned_bytes == status.planned_bytes
        assert ask(daemon.client, "second") == expected


def test_a_budget_that_the_host_does_not_have_is_lowered_and_the_numbers_are_told(store: Path, tmp_path: Path) -> None:
    with running(store, tmp_path, host='memory = "1024TiB"') as daemon:
        budget = daemon.client.status().host_pool.budget_bytes

        assert budget < read_host_memory().limit_bytes
        assert re.search(r"host\.memory of 1126 TB is lowered to [\d.]+ .B, since .* allows", log_of(daemon))


def test_a_pool_that_is_to_be_locked_is(store: Path, tmp_path: Path) -> None:
    with running(store, tmp_path, host="lock = true") as daemon:
        planned = load(daemon.client, "first", "null:0").host_pool_bytes
        if "may be swapped out" in log_of(daemon):
            pytest.skip(f"memory cannot be locked here: {log_of(daemon)}")

        (pid,) = worker_pids(daemon.client)
        assert locked_bytes(pid) == planned
        daemon.client.unload("first")
        assert locked_bytes(pid) == 0


def test_where_locking_is_not_allowed_the_pool_is_used_and_the_limit_is_told(store: Path, tmp_path: Path) -> None:
    limited = odd_worker("--lock-limit", str(4 * MIB))
    with running(store, tmp_path, host="lock = true", worker=limited) as daemon:
        load(daemon.client, "first", "null:0")

        assert len(ask(daemon.client, "first")) == 6
        (pid,) = worker_pids(daemon.client)
        assert locked_bytes(pid) <= 4 * MIB
        assert re.search(
            r"null:0: [\d.]+ .B of [\d.]+ MB in the pool of host memory are locked, the rest may be swapped out: "
            r".*the limit on locked memory is 4\.2 MB",
            log_of(daemon),
        )


def test_a_load_that_fails_leaves_nothing_in_the_pool(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    unit_file = next((tmp_path / "store" / "noise" / "units").glob("layer-00004*"))
    with unit_file.open("r+b") as file:
        file.seek(unit_file.stat().st_size - 8192)
        file.write(b"\x01" * 4096)
    with running(tmp_path / "store", tmp_path) as daemon:
        plan = PlanModel(model="noise", device_ids=("null:0",), resident_fraction=0.0)
        with pytest.raises(UnknownModel):  # before its stages are opened
            daemon.client.load(LoadModel(plan=plan, draft="nobody", speculation="draft"))
        assert daemon.client.status().host_pool.planned_bytes == 0

        with pytest.raises(PackageCorrupt, match=r"null:0: unit layer\.4 differs from its digest"):
            load(daemon.client, "first", "null:0")
        assert daemon.client.status().host_pool.planned_bytes == 0
        (pid,) = worker_pids(daemon.client)
        assert in_pool(pid) == {}
