"""Measures this host for the planner: `python -m teengined.engine.measure`, started by the daemon, which has no torch.

    request   {"devices": [DeviceSpec …], "directory": path on the disk that holds packages, "refresh": bool}
    events    {"event": "progress", "done", "total", "phase"} …
              {"event": "done", "devices": [DeviceProfile …], "host": HostProfile, "links": [LinkProfile …]}
              {"event": "error", "code", "message", "hint"} instead, and a non-zero exit

Nothing is cached here, so `refresh` changes nothing: the caller keeps results. Devices are measured one after another,
so that they do not disturb each other, and each kind once: two devices of one driver, model and thread count are alike.
"""

import dataclasses
import itertools
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teengined.core.device import DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.core.errors import ProtocolError
from teengined.core.memory_limits import read_host_memory
from teengined.core.records import RecordError, from_mapping, to_mapping
from teengined.engine.measurement_disk import disk_read_bytes_per_second
from teengined.engine.measurement_process import Event, Measuring, emit, measuring, serve_request
from teengined.interfaces.registry import PluginRegistry
from teengined.weights.options import StreamOptions

__all__ = ["DeviceKind", "kind_of", "main"]

_DEVICE_TIMEOUT_SECONDS = 120.0
_LINK_TIMEOUT_SECONDS = 60.0
_DEVICE_MODULE = "teengined.engine.measurement_device"
_LINK_MODULE = "teengined.engine.measurement_link"
# The rest is for the page cache and everybody else.
_HOST_TIER_SHARE = 0.8

Report = Callable[[str], None]
DeviceKind = tuple[str, str, int, int]
"""Driver, model name, threads, number of cores: what decides the speed of a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One measured device and what its process found beside it."""

    profile: DeviceProfile
    shares_host_memory: bool
    memory_bytes_per_second: float | None


def main() -> int:
    """Answer one request."""
    return serve_request(_answer)


def kind_of(spec: DeviceSpec, names: dict[str, str]) -> DeviceKind:
    """Return the kind of a device; `names` has the model by id of what the driver discovered."""
    of_driver = [name for device_id, name in names.items() if device_id.startswith(f"{spec.driver}:")]
    # Logical devices of one CPU are not discovered one by one.
    name = names.get(spec.id) or (of_driver[0] if len(of_driver) == 1 else "")
    return (spec.driver, name, spec.threads, len(spec.cores))


def _answer(request: Event) -> None:
    specs, directory = _parse(request)
    registry = PluginRegistry.load()
    names = {
        description.id: description.name
        for driver in {spec.driver for spec in specs}
        for description in registry.driver(driver).discover()
    }
    kinds = {spec.id: kind_of(spec, names) for spec in specs}
    report = _Progress(_num_steps(specs, kinds, registry)).report
    disk_rate = disk_read_bytes_per_second(directory, StreamOptions())
    report("disk")
    measured = _measure_devices(specs, kinds, report)
    links = _measure_links(specs, kinds, registry, report)
    emit(
        "done",
        devices=[to_mapping(measured[spec.id].profile) for spec in specs],
        host=to_mapping(_host(specs, measured, disk_rate)),
        links=[to_mapping(link) for link in links],
    )


def _parse(request: Event) -> tuple[list[DeviceSpec], Path]:
    devices: Any = request.get("devices")
    directory: Any = request.get("directory")
    if not isinstance(devices, list) or not devices or not isinstance(directory, str):
        raise ProtocolError("a request to measure needs `devices`, at least one, and `directory`")
    try:
        return [from_mapping(DeviceSpec, device, "devices") for device in devices], Path(directory)
    except RecordError as error:
        raise ProtocolError(f"the request to measure is wrong: {error}") from error


class _Progress:
    """Counts steps done and tells each."""

    def __init__(self, num_steps: int) -> None:
        self._done, self._total = 0, num_steps

    def report(self, phase: str) -> None:
        """Tell that a step ended."""
        self._done += 1
        emit("progress", done=self._done, total=self._total, phase=phase)


def _num_steps(specs: Sequence[DeviceSpec], kinds: dict[str, DeviceKind], registry: PluginRegistry) -> int:
    per_device = len(registry.precisions()) + 1
    num_links = len(_link_kinds(specs, kinds)) * len(_transports(registry))
    return 2 + per_device * len(set(kinds.values())) + num_links


def _measure_devices(specs: Sequence[DeviceSpec], kinds: dict[str, DeviceKind], report: Report) -> dict[str, _Measured]:
    by_kind: dict[DeviceKind, _Measured] = {}
    for spec in specs:
        if kinds[spec.id] not in by_kind:
            by_kind[kinds[spec.id]] = _measure_device(spec, report, measure_host=not by_kind)
    return {spec.id: _renamed(by_kind[kinds[spec.id]], spec.id) for spec in specs}


def _measure_device(spec: DeviceSpec, report: Report, *, measure_host: bool) -> _Measured:
    request = {"device": to_mapping(spec), "measure_host": measure_host}
    with measuring([(_DEVICE_MODULE, request, f"measuring {spec.id}")]) as (process,):
        done = _last_event(process, _DEVICE_TIMEOUT_SECONDS, report)
    return _Measured(
        profile=from_mapping(DeviceProfile, done["profile"]),
        shares_host_memory=done["shares_host_memory"],
        memory_bytes_per_second=done["memory_bytes_per_second"],
    )


def _last_event(process: Measuring, timeout_seconds: float, report: Report) -> Event:
    last: Event = {}
    for last in process.events(timeout_seconds):
        if last["event"] == "step":
            report(last["phase"])
    return last


def _renamed(measured: _Measured, device_id: str) -> _Measured:
    return dataclasses.replace(measured, profile=dataclasses.replace(measured.profile, device_id=device_id))


def _host(specs: Sequence[DeviceSpec], measured: dict[str, _Measured], disk_rate: float) -> HostProfile:
    memory_rate = max(found.memory_bytes_per_second or 0.0 for found in measured.values())
    host_tier_bytes = 0
    if not all(found.shares_host_memory for found in measured.values()):
        taken_bytes = sum(spec.memory_bytes for spec in specs if measured[spec.id].shares_host_memory)
        host_tier_bytes = max(0, int(read_host_memory().available_bytes * _HOST_TIER_SHARE) - taken_bytes)
    return HostProfile(
        host=socket.gethostname(),
        disk_read_bytes_per_second=disk_rate,
        memory_read_bytes_per_second=memory_rate,
        memory_bytes=host_tier_bytes,
    )


def _transports(registry: PluginRegistry) -> list[str]:
    """Return the transports between processes of one host; without any there are no links."""
    return [name for name, transport in registry.transports().items() if transport.reach == "host"]


def _link_kinds(
    specs: Sequence[DeviceSpec], kinds: dict[str, DeviceKind]
) -> dict[frozenset[DeviceKind], tuple[DeviceSpec, DeviceSpec]]:
    """Return one pair of devices for each pair of kinds; a link is as fast one way as the other."""
    return {
        frozenset((kinds[source.id], kinds[target.id])): (source, target)
        for source, target in itertools.combinations(specs, 2)
    }


def _measure_links(
    specs: Sequence[DeviceSpec], kinds: dict[str, DeviceKind], registry: PluginRegistry, report: Report
) -> list[LinkProfile]:
    links: list[LinkProfile] = []
    for transport in _transports(registry):
        found: dict[frozenset[DeviceKind], Event] = {}
        for kind, (source, target) in _link_kinds(specs, kinds).items():
            found[kind] = _measure_link(transport, source, target)
            report(f"{transport} {source.id} {target.id}")
        for source, target in itertools.permutations(specs, 2):
            done = found[frozenset((kinds[source.id], kinds[target.id]))]
            links.append(
                LinkProfile(
                    source=source.id,
                    target=target.id,
                    transport=transport,
                    latency_seconds=done["latency_seconds"],
                    bytes_per_second=done["bytes_per_second"],
                )
            )
    return links


def _measure_link(transport: str, source: DeviceSpec, target: DeviceSpec) -> Event:
    what = f"measuring {transport} between {source.id} and {target.id}"
    with tempfile.TemporaryDirectory(prefix="teengine-link-") as directory:
        here, there = f"{directory}/a", f"{directory}/b"
        lead = {"device": to_mapping(source), "transport": transport, "listen": here, "connect": there, "leads": True}
        echo = {"device": to_mapping(target), "transport": transport, "listen": there, "connect": here, "leads": False}
        with measuring([(_LINK_MODULE, lead, what), (_LINK_MODULE, echo, what)]) as (leading, _):
            return _last_event(leading, _LINK_TIMEOUT_SECONDS, lambda _: None)


if __name__ == "__main__":
    sys.exit(main())
