"""What `teengine doctor` finds, as values: readings of a host go in, findings with their remedy come out. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from teengined.core.device import MEASURED_TOKENS, DeviceProfile, DeviceSpec
from teengined.core.quantities import format_bytes
from teengined.protocol.messages import DeviceStatus, DiskStatus, Profiles

__all__ = [
    "Finding",
    "HostReadings",
    "Level",
    "device_findings",
    "disk_findings",
    "host_findings",
    "kernel_finding",
    "library_findings",
    "profile_findings",
]

MIN_OPEN_FILES = 1024
"""Clients, workers and parallel reads; a daemon under systemd has 524288."""
MIN_SHARED_MEMORY_BYTES = 32 << 20
"""Containers often have 64 MB; a stage's activations of a prompt chunk take a few."""
MIN_FREE_DISK_BYTES = 5 * 10**9
"""A small model and its conversion."""
SLOW_DISK_BYTES_PER_SECOND = 200e6
"""A rotating disk: a layer of a large model takes seconds."""


class Level(StrEnum):
    """How bad it is. Only `FAIL` makes the doctor's exit status 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    text: str
    remedy: str = ""
    """The command or setting that mends it; empty where all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReadings:
    """What was read from this host."""

    open_files_limit: int
    shared_memory_bytes: int | None
    """Free in /dev/shm; None where there is none."""
    store: str
    store_free_bytes: int
    memory_bytes: int
    available_memory_bytes: int


def library_findings(versions: Mapping[str, str | None]) -> Iterator[Finding]:
    """Yield one finding for all libraries that are there, and one for each that is not."""
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding(check="libraries", level=Level.OK, text=found or "none")
    for name, version in versions.items():
        if version is None:
            remedy = "pip install --force-reinstall teengine"
            yield Finding(check="libraries", level=Level.FAIL, text=f"{name} is missing", remedy=remedy)


def host_findings(readings: HostReadings) -> Iterator[Finding]:
    """Yield what limits, shared memory, disk and memory of the host allow."""
    yield _judge(
        "open files",
        f"{readings.open_files_limit} allowed",
        readings.open_files_limit >= MIN_OPEN_FILES,
        f"ulimit -n {MIN_OPEN_FILES * 4}   (LimitNOFILE= in the unit)",
    )
    shared_bytes = readings.shared_memory_bytes
    yield _judge(
        "shared memory",
        "there is no /dev/shm" if shared_bytes is None else f"{format_bytes(shared_bytes)} free in /dev/shm",
        shared_bytes is not None and shared_bytes >= MIN_SHARED_MEMORY_BYTES,
        "mount -o remount,size=1G /dev/shm   (--shm-size=1g for a container)",
    )
    yield _judge(
        "store",
        f"{format_bytes(readings.store_free_bytes)} free in {readings.store}",
        readings.store_free_bytes >= MIN_FREE_DISK_BYTES,
        "teengine rm MODEL, or point store.dir to a larger disk",
    )
    text = f"{format_bytes(readings.available_memory_bytes)} of {format_bytes(readings.memory_bytes)} available"
    yield Finding(check="memory", level=Level.OK, text=text)


def device_findings(devices: Iterable[DeviceStatus], memory_bytes: int) -> Iterator[Finding]:
    """Yield each device's state, and whether the budgets of CPU devices fit into the host's memory."""
    specs: list[DeviceSpec] = []
    for device in devices:
        specs.append(device.spec)
        name = f"{device.description.name}, " if device.description else ""
        text = f"{name}{format_bytes(device.spec.memory_bytes)} budget, {device.state}"
        remedy = "journalctl -u teengined   tells why its worker ended" if device.problem else ""
        level = Level.FAIL if device.state == "failed" else Level.WARN if device.problem else Level.OK
        text = f"{text}: {device.problem}" if device.problem else text
        yield Finding(check=device.spec.id, level=level, text=text, remedy=remedy)
    budgets_bytes = sum(spec.memory_bytes for spec in specs if spec.driver == "cpu")
    if budgets_bytes > memory_bytes:
        yield Finding(
            check="budgets",
            level=Level.WARN,
            text=f"CPU devices may take {format_bytes(budgets_bytes)}, the host has {format_bytes(memory_bytes)}",
            remedy="lower `memory` of the [[devices]] tables",
        )


def disk_findings(disks: Iterable[DiskStatus]) -> Iterator[Finding]:
    """Yield the disks that failed while weights were read from them."""
    for disk in disks:
        if disk.num_failures:
            text = f"{disk.num_failures} reads failed in {disk.path} since the daemon started; the last: {disk.problem}"
            remedy = "dmesg   tells what the disk said; then teengine verify MODEL, or move store.dir to another disk"
            yield Finding(check="disk", level=Level.FAIL, text=text, remedy=remedy)


def profile_findings(profiles: Profiles) -> Iterator[Finding]:
    """Yield what disk, memory and devices were measured to do."""
    disk = profiles.host.disk_read_bytes_per_second
    yield _judge(
        "disk speed",
        f"{format_bytes(disk)}/s",
        disk >= SLOW_DISK_BYTES_PER_SECOND,
        "put store.dir on a faster disk: streamed layers are read from it for every token",
    )
    text = f"{format_bytes(profiles.host.memory_read_bytes_per_second)}/s"
    yield Finding(check="memory speed", level=Level.OK, text=text)
    for profile in profiles.devices:
        yield Finding(check=f"{profile.device_id} speed", level=Level.OK, text=_speeds(profile))


def _speeds(profile: DeviceProfile) -> str:
    """Return parameters a second for one row and for a chunk, by precision, such as `bf16 4.1/180`."""
    few, many = MEASURED_TOKENS[0], MEASURED_TOKENS[-1]
    precisions = dict.fromkeys(point.precision for point in profile.compute)
    parts = (
        f"{name} {_giga_parameters(profile, name, few)}/{_giga_parameters(profile, name, many)}" for name in precisions
    )
    return f"10⁹ parameters/s for {few}/{many} tokens: {', '.join(parts)}; auto means {profile.compute_dtype}"


def _giga_parameters(profile: DeviceProfile, precision: str, num_tokens: int) -> str:
    return f"{num_tokens / profile.seconds_per_parameter(precision, num_tokens) / 1e9:.3g}"


def _judge(check: str, text: str, good: bool, remedy: str) -> Finding:
    return Finding(check=check, level=Level.OK if good else Level.WARN, text=text, remedy="" if good else remedy)


def kernel_finding(library: Path | None, names: tuple[str, ...], problem: str) -> Finding:
    """Say which compiled kernels CPU workers have.

    Args:
        library: Where they are; None: there are none, for `problem`.
        names: Those that the processor can run.
        problem: Why nothing was compiled.
    """
    if library is None:
        text = f"CPUs serve with stock kernels, slower with many streams: {problem}"
        return Finding(check="kernels", level=Level.WARN, text=text, remedy="apt-get install gcc libc6-dev")
    if not names:
        text = "CPUs serve with stock kernels, slower with many streams: the compiled ones need AVX-512"
        return Finding(check="kernels", level=Level.WARN, text=text, remedy="a processor with AVX-512 BW and VNNI")
    return Finding(check="kernels", level=Level.OK, text=f"{', '.join(names)}: compiled in {library.parent}")
