"""A real daemon with a real worker on a disk that fails, crawls, or changes under the model; and models that compete.

The disk is a file system on a loop device: its backing file loses its end (reads give EIO), or the kernel throttles it.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.private_daemon import PrivateDaemon
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.errors import DiskFailed, DoesNotFit, PackageCorrupt, PackageError, TeengineError
from teengined.core.sampling import SamplingParams
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.command import SynthCommand, run_synth
from teengined.modelpack.store import PackageStore
from teengined.protocol.messages import Generate, LoadModel, PlanModel, TokenChunk
from tests.fakes.running_daemon import wait_until
from tests.fakes.slow_disk import throttled
from tests.fakes.tiny_models import tiny_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DISK_BYTES = 256 << 20
BUDGET_BYTES = 48 << 20
MEASURE = Path(__file__).parents[1] / "fakes" / "fake_measure.py"
SETTINGS = f"""
[worker]
stop_timeout = "2s"
restart_delay = "50ms"
[streaming]
direct_io = "always"
max_step_tokens = 16
[batching]
max_logit_rows = 4
[kv]
block_tokens = 16
[planning]
measure_command = ["{sys.executable}", "{MEASURE}"]
context = 64
num_slots = 1
"""


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield (mount point, backing file, device) of a small file system of its own."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not shutil.which("losetup"):
        pytest.skip("mounting a loop device needs root, mkfs.ext4 and losetup")
    backing, mount = tmp_path / "disk.img", tmp_path / "mnt"
    mount.mkdir()
    backing.touch()
    os.truncate(backing, DISK_BYTES)
    call("mkfs.ext4", "-q", str(backing))
    try:
        loop = call("losetup", "--find", "--show", "--direct-io=on", str(backing))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device here: {error.stderr.strip()}")
    try:
        call("mount", loop, str(mount))
        yield mount, backing, loop
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            call("umount", "--lazy", str(mount))
        call("losetup", "--detach", loop)


def write_model(store: Path, directory: Path, name: str = "noise", num_layers: int = 8) -> Path:
    """Write a synthetic Llama of some 2 MB a layer and return its directory."""
    shape = directory / "shape.json"
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": num_layers, "head_dim": 64}
    shape.write_text(json.dumps(tiny_config("llama").to_dict() | wide, default=str))
    command = SynthCommand(name=name, store=store, like=str(shape), precision="fp32")
    run_synth(command, PluginRegistry.load(), lambda _progress: None)
    os.sync()
    return PackageStore(store).path_of(name)


def open_daemon(store: Path, directory: Path, budget_bytes: int = BUDGET_BYTES) -> PrivateDaemon:
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=budget_bytes)
    return PrivateDaemon(directory / "state", store, [spec], SETTINGS)


def load(client: Client) -> None:
    client.load(LoadModel(plan=PlanModel(model="noise", resident_fraction=0.0)))


def ask(client: Client, name: str = "noise", num_tokens: int = 4) -> list[int]:
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=0.0)
    events = client.generate(Generate(model=name, token_ids=(5, 6, 7), sampling=sampling))
    return [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]


def test_a_disk_that_fails_ends_the_request_with_its_error_and_is_marked(
    disk: tuple[Path, Path, str], tmp_path: Path
) -> None:
    mount, backing, _ = disk
    write_model(mount / "store", tmp_path)
    with open_daemon(mount / "store", tmp_path) as daemon:
        load(daemon.client)
        assert len(ask(daemon.client)) == 4
        os.truncate(backing, 4096)

        with pytest.raises(DiskFailed, match=r"cpu:0: unit (layer\.\d|head|embedding): reading .*Input/output error"):
            ask(daemon.client, num_tokens=16)

        (marked,) = daemon.client.status().disks
        assert marked.num_failures >= 1
        assert "Input/output error" in marked.problem
        wait_until(lambda: daemon.client.deployments().deployments[0].state == "failed", "the deployment has failed")
        with pytest.raises(TeengineError, match="Input/output error"):
            ask(daemon.client)
        assert daemon.client.status().state == "ready"


def test_a_disk_that_crawls_holds_up_its_answer_and_nobody_else(disk: tuple[Path, Path, str], tmp_path: Path) -> None:
    mount, _, loop = disk
    write_model(mount / "store", tmp_path)
    with open_daemon(mount / "store", tmp_path) as daemon, Client(daemon.endpoint, timeout_seconds=120.0) as other:
        load(daemon.client)
        expected = ask(daemon.client)
        answer: list[int] = []
        asking = threading.Thread(target=lambda: answer.extend(ask(other)))
        with throttled(loop, bytes_per_second=128 << 10):
            asking.start()
            wait_until(lambda: daemon.client.status().num_running == 1, "the answer is under way")
            for _ in range(200):  # each is answered while the step, of a minute or more, goes on
                status = daemon.client.status()
                assert (status.num_running, answer) == (1, [])
        asking.join(100)
        assert answer == expected


def test_a_package_that_is_deleted_under_its_model_goes_on_from_the_open_files(tmp_path: Path) -> None:
    package = write_model(tmp_path / "store", tmp_path)
    with open_daemon(tmp_path / "store", tmp_path) as daemon:
        load(daemon.client)
        expected = ask(daemon.client)

        shutil.rmtree(package)

        assert ask(daemon.client) == expected
        with pytest.raises(TeengineError, match="no model named"):
            daemon.client.show("noise")


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_package_that_changes_under_its_model_is_refused_not_believed(keeps_time: bool, tmp_path: Path) -> None:
    package = write_model(tmp_path / "store", tmp_path)
    with open_daemon(tmp_path / "store", tmp_path) as daemon:
        load(daemon.client)
        ask(daemon.client)

        path = package / "units" / "layer-00004.safetensors"
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(before.st_size - 8192)
            file.write(b"\x01" * 4096)
        if keeps_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

        error, problem = (
            (PackageCorrupt, "differs from its digest") if keeps_time else (PackageError, "changed on disk")
        )
        with pytest.raises(error, match=rf"unit layer\.4.*{problem}"):
            ask(daemon.client)
        wait_until(lambda: daemon.client.deployments().deployments[0].state == "failed", "the deployment has failed")
        assert "layer.4" in daemon.client.deployments().deployments[0].problem


def test_a_budget_below_the_smallest_working_set_is_refused_with_the_number_that_works(tmp_path: Path) -> None:
    write_model(tmp_path / "store", tmp_path)
    refused_with = r"cpu:0 has 4\.2 MB \(4194304 bytes\); the smallest budget that works is .* \((\d+) bytes\) on cpu:0"
    with open_daemon(tmp_path / "store", tmp_path, budget_bytes=4 << 20) as daemon:
        with pytest.raises(DoesNotFit, match=refused_with) as refused:
            load(daemon.client)
        assert daemon.client.deployments().deployments == ()

    told = re.search(refused_with, refused.value.message)
    assert told is not None
    with open_daemon(tmp_path / "store", tmp_path, budget_bytes=int(told[1])) as daemon:
        load(daemon.client)
        assert len(ask(daemon.client)) == 4


def test_a_second_model_gets_what_is_left_or_a_refusal_with_numbers_and_the_first_goes_on(tmp_path: Path) -> None:
    write_model(tmp_path / "store", tmp_path)
    write_model(tmp_path / "store", tmp_path, "second")
    with open_daemon(tmp_path / "store", tmp_path, budget_bytes=36 << 20) as daemon:
        first = daemon.client.load(LoadModel(plan=PlanModel(model="noise"))).deployment
        expected = ask(daemon.client)
        second = daemon.client.load(LoadModel(plan=PlanModel(model="second"))).deployment

        assert first.plan.stages[0].streamed_bytes < second.plan.stages[0].streamed_bytes
        assert first.plan.stages[0].total_bytes + second.plan.stages[0].total_bytes <= 36 << 20
        assert (ask(daemon.client), len(ask(daemon.client, "second"))) == (expected, 4)
        with pytest.raises(DoesNotFit, match=r"cpu:0 has \d"):
            daemon.client.load(LoadModel(plan=PlanModel(model="noise"), name="third"))
        assert ask(daemon.client) == expected
