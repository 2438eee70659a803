"""Budgets of devices that compute in host memory: as configured, or what the host's limits leave, whichever is less.

A process that takes more than its control group allows is killed by the kernel, at a moment that nobody chose. So what
the configuration gives away is held to the limit before any worker starts. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from teengined.core.device import DeviceSpec
from teengined.core.errors import ConfigError
from teengined.core.memory_limits import HostMemory
from teengined.core.quantities import format_bytes

__all__ = ["HOST_DRIVERS", "fitted_specs", "free_host_bytes", "host_pool_budget", "short_bytes"]

HOST_DRIVERS = frozenset({"cpu"})
"""Drivers whose devices' memory is the host's."""

# What processes take beside their budgets: torch and its libraries in a worker, the daemon with its renderers.
_WORKER_BYTES = 256 << 20
_DAEMON_BYTES = 64 << 20
# Below this no model runs, and a number this small is a mistake in the limit.
_LEAST_BYTES = 16 << 20
_PAGE_BYTES = 4096


def fitted_specs(specs: Sequence[DeviceSpec], memory: HostMemory) -> tuple[tuple[DeviceSpec, ...], tuple[str, ...]]:
    """Return the devices with budgets that fit the limit together, and a sentence for each that was lowered.

    Raises:
        ConfigError: the limit leaves next to nothing.
    """
    hosted = [spec for spec in specs if spec.driver in HOST_DRIVERS]
    wanted = sum(spec.memory_bytes for spec in hosted)
    room = memory.limit_bytes - _DAEMON_BYTES - _WORKER_BYTES * len(hosted)
    if not hosted or wanted <= room:
        return tuple(specs), ()
    if room < _LEAST_BYTES * len(hosted):
        raise ConfigError(
            f"{memory.origin} allows {format_bytes(memory.limit_bytes)}, which leaves nothing for weights: "
            f"{len(hosted)} workers and the daemon take {format_bytes(memory.limit_bytes - room)} themselves",
            hint="raise that limit, or configure fewer devices",
        )
    lowered: dict[str, DeviceSpec] = {}
    for spec in hosted:
        share = spec.memory_bytes * room // wanted // _PAGE_BYTES * _PAGE_BYTES
        lowered[spec.id] = replace(spec, memory_bytes=share)
    notes = tuple(
        f"{spec.id}: the budget of {format_bytes(spec.memory_bytes)} is lowered to "
        f"{format_bytes(lowered[spec.id].memory_bytes)}, since {memory.origin} allows "
        f"{format_bytes(memory.limit_bytes)} for everything"
        for spec in hosted
    )
    return tuple(lowered.get(spec.id, spec) for spec in specs), notes


def short_bytes(specs: Sequence[DeviceSpec], reserved: Mapping[str, int], available_bytes: int) -> dict[str, int]:
    """Return, by device, how much of its free budget the host does not have now, since others use it.

    What is short is shared out by what is free. Other deployments' reservations are taken as allocated.
    """
    free = {
        spec.id: max(0, spec.memory_bytes - reserved.get(spec.id, 0)) for spec in specs if spec.driver in HOST_DRIVERS
    }
    total = sum(free.values())
    idle = sum(not reserved.get(device_id) for device_id in free)  # whose worker has yet to start
    short = total + idle * _WORKER_BYTES - available_bytes
    if short <= 0:
        return {}
    short = min(short, total)
    return {device_id: -(-num_bytes * short // total) for device_id, num_bytes in free.items() if num_bytes}


def host_pool_budget(wanted_bytes: int, specs: Sequence[DeviceSpec], memory: HostMemory) -> tuple[int, str]:
    """Return the most that the pool of host memory may hold, and a sentence where that is less than was wanted.

    Args:
        wanted_bytes: As configured; 0: whatever there is room for.
        specs: All devices, their budgets fitted.
        memory: What the host allows.
    """
    if all(spec.driver in HOST_DRIVERS for spec in specs):
        return 0, ""  # Nothing waits there: what a CPU does not keep is in the page cache.
    hosted_bytes = sum(spec.memory_bytes for spec in specs if spec.driver in HOST_DRIVERS)
    room = max(0, memory.limit_bytes - _DAEMON_BYTES - _WORKER_BYTES * len(specs) - hosted_bytes)
    if not wanted_bytes or wanted_bytes <= room:
        return wanted_bytes or room, ""
    return room, (
        f"host.memory of {format_bytes(wanted_bytes)} is lowered to {format_bytes(room)}, since {memory.origin} allows "
        f"{format_bytes(memory.limit_bytes)} for everything, of which devices have {format_bytes(hosted_bytes)}"
    )


def free_host_bytes(specs: Sequence[DeviceSpec], reserved: Mapping[str, int], available_bytes: int) -> int:
    """Return what the host has now beside what is promised: to devices in its memory, and to workers yet to start."""
    hosted = [spec for spec in specs if spec.driver in HOST_DRIVERS]
    promised = sum(max(0, spec.memory_bytes - reserved.get(spec.id, 0)) for spec in hosted)
    idle = sum(not reserved.get(spec.id) for spec in specs)
    return max(0, available_bytes - promised - idle * _WORKER_BYTES)
