from dataclasses import replace
from pathlib import Path

from teengined.cli.findings import (
    HostReadings,
    Level,
    device_findings,
    host_findings,
    kernel_finding,
    library_findings,
    profile_findings,
)
from teengined.core.device import ComputePoint, DeviceProfile, DeviceSpec, HostProfile
from teengined.protocol.messages import DeviceStatus, Profiles

GOOD = HostReadings(
    open_files_limit=20_000,
    shared_memory_bytes=1 << 30,
    store="/models",
    store_free_bytes=10**12,
    memory_bytes=32 * 10**9,
    available_memory_bytes=20 * 10**9,
)
DEVICE = DeviceStatus(
    spec=DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=10**9),
    description=None,
    worker_pid=None,
    state="idle",
    planned_bytes=0,
)
PROFILES = Profiles(
    devices=(
        DeviceProfile(
            device_id="cpu:0",
            compute_dtype="bf16",
            compute=(
                ComputePoint(precision="bf16", num_tokens=1, seconds_per_parameter=1e-9),
                ComputePoint(precision="bf16", num_tokens=512, seconds_per_parameter=4e-9),
            ),
            layer_overhead_seconds=1e-4,
            host_to_device_bytes_per_second=None,
        ),
    ),
    host=HostProfile(
        host="here", disk_read_bytes_per_second=1e9, memory_read_bytes_per_second=2e10, memory_bytes=10**9
    ),
    links=(),
)


def levels(findings) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def test_a_fit_host_has_only_good_findings():
    assert set(levels(host_findings(GOOD)).values()) == {Level.OK}


def test_each_shortage_names_its_remedy():
    poor = replace(GOOD, open_files_limit=256, shared_memory_bytes=None, store_free_bytes=10)

    wrong = [finding for finding in host_findings(poor) if finding.level is Level.WARN]

    assert [finding.check for finding in wrong] == ["open files", "shared memory", "store"]
    assert all(finding.remedy for finding in wrong)


def test_a_missing_library_fails_and_says_how_to_get_it():
    found = list(library_findings({"torch": "2.13.0", "gguf": None}))

    assert found[0].text == "torch 2.13.0"
    assert (found[1].level, found[1].text) == (Level.FAIL, "gguf is missing")


def test_a_failed_device_fails_and_one_in_trouble_warns():
    failed = replace(DEVICE, state="failed", problem="worker died 5 times")
    waiting = replace(DEVICE, spec=replace(DEVICE.spec, id="cpu:1"), state="backoff", problem="worker died")

    assert levels(device_findings([failed, waiting], 10**10)) == {"cpu:0": Level.FAIL, "cpu:1": Level.WARN}


def test_budgets_beyond_the_memory_of_the_host_warn():
    assert levels(device_findings([DEVICE], 10**8))["budgets"] is Level.WARN
    assert "budgets" not in levels(device_findings([DEVICE], 10**9))


def test_measured_speeds_are_told_for_one_row_and_for_a_chunk():
    speeds = {finding.check: finding.text for finding in profile_findings(PROFILES)}

    assert speeds["disk speed"] == "1.0 GB/s"
    assert "bf16 1/128" in speeds["cpu:0 speed"]


def test_a_slow_disk_warns():
    slow = replace(PROFILES, host=replace(PROFILES.host, disk_read_bytes_per_second=8e7))

    assert levels(profile_findings(slow))["disk speed"] is Level.WARN


def test_a_library_without_kernels_is_not_well():
    library = Path("/cache/native/kernels.so")

    assert kernel_finding(library, (), "").level is Level.WARN
    assert kernel_finding(None, ("attention",), "no compiler").text.endswith("no compiler")
    well = kernel_finding(library, ("int8 products", "attention"), "")
    assert (well.level, well.text) == (Level.OK, "int8 products, attention: compiled in /cache/native")
