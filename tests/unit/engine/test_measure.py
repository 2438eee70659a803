"""The measuring program as the daemon starts it: a request on standard input, events on standard output."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from teengined.core.device import MEASURED_TOKENS, DeviceProfile, DeviceSpec
from teengined.core.records import from_mapping
from teengined.engine.measure import _host, _Measured, kind_of
from teengined.protocol.messages import Profiles

COMMAND = [sys.executable, "-m", "teengined.engine.measure"]
MIB = 1 << 20


def cpu(index, **fields):
    return {"id": f"cpu:{index}", "driver": "cpu", "memory_bytes": 64 * MIB, "threads": 1} | fields


def run(request, **options):
    text = request if isinstance(request, str) else json.dumps(request)
    done = subprocess.run(
        COMMAND, input=text + "\n", capture_output=True, text=True, check=False, timeout=110, **options
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return the directory and the events of one measurement of two CPU devices."""
    directory = tmp_path_factory.mktemp("store")
    done, events = run({"devices": [cpu(0), cpu(1)], "directory": str(directory), "refresh": True})
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, events


@pytest.mark.slow
def test_the_last_event_holds_the_profiles_that_the_daemon_reads(measured):
    _, events = measured

    profiles = from_mapping(Profiles, {key: events[-1][key] for key in ("devices", "host", "links")})

    assert [device.device_id for device in profiles.devices] == ["cpu:0", "cpu:1"]


@pytest.mark.slow
def test_every_installed_precision_is_measured_at_every_row_count(measured):
    _, events = measured
    for device in events[-1]["devices"]:
        points = {(point["precision"], point["num_tokens"]) for point in device["compute"]}

        assert points >= {(name, rows) for name in ("fp32", "bf16", "fp16", "int8") for rows in MEASURED_TOKENS}
        assert all(point["seconds_per_parameter"] > 0 for point in device["compute"])


@pytest.mark.slow
def test_devices_of_one_kind_are_measured_once(measured):
    _, events = measured
    first, second = events[-1]["devices"]

    assert {**first, "device_id": ""} == {**second, "device_id": ""}


@pytest.mark.slow
def test_every_ordered_pair_of_devices_has_a_link(measured):
    _, events = measured
    links = [link for link in events[-1]["links"] if link["transport"] == "shm"]

    assert {(link["source"], link["target"]) for link in links} == {("cpu:0", "cpu:1"), ("cpu:1", "cpu:0")}
    assert all(link["latency_seconds"] >= 0 and link["bytes_per_second"] > 0 for link in links)


@pytest.mark.slow
def test_the_host_is_measured_too(measured):
    host = measured[1][-1]["host"]

    assert host["disk_read_bytes_per_second"] > 0
    assert host["memory_read_bytes_per_second"] > 0
    assert host["memory_bytes"] == 0  # no device has memory of its own


@pytest.mark.slow
def test_progress_counts_up_to_its_total(measured):
    _, events = measured
    progress = [event for event in events if event["event"] == "progress"]

    assert [event["done"] for event in progress] == list(range(1, progress[0]["total"] + 1))


@pytest.mark.slow
def test_nothing_is_left_in_the_directory(measured):
    assert list(measured[0].iterdir()) == []


def test_a_request_that_is_no_json_is_an_error_event():
    done, events = run("what")

    assert done.returncode == 1
    assert events == [{"event": "error", "code": "malformed", "message": "no line of JSON: 'what\\n'", "hint": ""}]


@pytest.mark.parametrize("request_", [{}, {"devices": [], "directory": "/"}, {"devices": [{}], "directory": "/"}, [1]])
def test_a_request_without_devices_or_directory_is_an_error_event(request_):
    done, events = run(request_)

    assert (done.returncode, events[-1]["event"], events[-1]["code"]) == (1, "error", "malformed")


def test_an_unknown_driver_is_told_with_what_there_is(tmp_path):
    done, events = run({"devices": [cpu(0, id="tpu:0", driver="tpu")], "directory": str(tmp_path)})

    assert done.returncode == 78
    assert "cpu" in events[-1]["message"]


def test_a_directory_that_is_not_there_is_told(tmp_path):
    _, events = run({"devices": [cpu(0)], "directory": str(tmp_path / "nowhere")})

    assert events[-1]["code"] == "driver_failed"
    assert "nowhere" in events[-1]["message"]


def test_a_device_that_cannot_be_opened_ends_the_measurement_with_its_error(tmp_path):
    done, events = run({"devices": [cpu(0, cores=[9999])], "directory": str(tmp_path)})

    assert done.returncode == 7
    assert "9999" in events[-1]["message"]


def test_a_killed_measurement_leaves_no_process_behind(tmp_path):
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"devices": [cpu(0)], "directory": str(tmp_path)}) + "\n")
    process.stdin.close()
    process.stdout.readline()  # the disk is measured, so that a device is next
    children = wait_for_children(process.pid)

    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    process.stdout.close()

    assert not psutil.wait_procs(children, timeout=30)[1]


def wait_for_children(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if children := psutil.Process(pid).children():
            return children
    raise AssertionError("no child was started")


def test_the_program_itself_needs_no_torch():
    code = "import sys, teengined.engine.measure; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_devices_are_of_one_kind_by_driver_model_threads_and_number_of_cores():
    names = {"cpu:0": "EPYC", "cuda:0": "T4", "cuda:1": "A100"}

    def kind(device_id, **fields):
        return kind_of(DeviceSpec(id=device_id, driver=device_id.split(":")[0], memory_bytes=1, **fields), names)

    assert kind("cpu:0", threads=2, cores=(0, 1)) == kind("cpu:1", threads=2, cores=(2, 3))
    assert kind("cpu:0", threads=1) != kind("cpu:1", threads=2)
    assert kind("cuda:0") != kind("cuda:1")


def test_a_device_with_memory_of_its_own_makes_host_memory_a_tier():
    specs = [DeviceSpec(id=f"{driver}:0", driver=driver, memory_bytes=MIB) for driver in ("cpu", "null")]
    profile = DeviceProfile(
        device_id="",
        compute_dtype="fp32",
        compute=(),
        layer_overhead_seconds=0,
        host_to_device_bytes_per_second=None,
    )
    measured = {
        spec.id: _Measured(profile=profile, shares_host_memory=spec.driver == "cpu", memory_bytes_per_second=rate)
        for spec, rate in zip(specs, (None, 2e9), strict=True)
    }

    host = _host(specs, measured, 1e9)

    assert 0 < host.memory_bytes < psutil.virtual_memory().total
    assert (host.disk_read_bytes_per_second, host.memory_read_bytes_per_second) == (1e9, 2e9)
