"""A real daemon, real workers of devices with memory of their own, and one pool of host memory between them."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.private_daemon import PrivateDaemon
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.plan import Tier
from teengined.core.sampling import SamplingParams
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.command import SynthCommand, run_synth
from teengined.protocol.messages import Deployment, Generate, LoadModel, PlanModel, TokenChunk
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
def running(store: Path, directory: Path, *, host: str = "", worker: str = "", host_bytes: int = 64 * MIB):
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


def worker_pids(client: Client) -> list[int]:
    return [device.worker_pid for device in client.status().devices if device.worker_pid]


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
