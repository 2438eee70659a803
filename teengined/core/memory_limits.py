"""How much memory a process may really use: the least of the machine's and of its control groups' limits.

Both versions of control groups are looked at, since a host may mount both; a group's limits hold for everything below
it. `host_memory` is pure, `read_host_memory` gives it the files of /proc and /sys.

    version 2   memory.max (then the kernel kills), memory.high (then it slows everything down), memory.current
    version 1   memory.limit_in_bytes, memory.usage_in_bytes, and at the top of both memory.stat
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["HostMemory", "host_memory", "read_host_memory"]

ReadText = Callable[[str], str | None]
"""Absolute path -> content; None where it cannot be read."""

_MOUNTS = PurePosixPath("/sys/fs/cgroup")
# A limit above this is none: version 1 writes the largest number of whole pages.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """What this process may use, and what it could take now."""

    total_bytes: int
    """Of the machine."""
    limit_bytes: int
    """The least of the machine's memory and all limits."""
    available_bytes: int
    """What could be allocated now without swapping, being slowed down or killed."""
    origin: str
    """What sets the limit, for people: `the machine`, or a file."""


@dataclass(frozen=True, slots=True)
class _Names:
    limits: tuple[str, ...]
    usage: str
    reclaimable: str
    """Key of memory.stat: page cache that nothing used of late, which counts as used and gives way at once."""


_VERSION_2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")
_VERSION_1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def host_memory(read: ReadText) -> HostMemory:
    """Return what holds for the process whose files `read` reads."""
    meminfo = _table(read("/proc/meminfo") or "")
    total_bytes = meminfo.get("MemTotal:", 0) * 1024
    limit, available, origin = total_bytes, meminfo.get("MemAvailable:", 0) * 1024, "the machine"
    for group, names in _groups(read):
        used = _used_bytes(read, group, names)
        for file in names.limits:
            value = _number(read(f"{group}/{file}"))
            if value is None or value >= _UNLIMITED_BYTES:
                continue
            available = min(available, max(0, value - used))
            if value < limit:
                limit, origin = value, f"{group}/{file}"
    return HostMemory(total_bytes=total_bytes, limit_bytes=limit, available_bytes=available, origin=origin)


def read_host_memory(root: Path = Path("/")) -> HostMemory:
    """Return what holds for this process. `root` is where `proc` and `sys` are found."""

    def read(path: str) -> str | None:
        try:
            return (root / path.lstrip("/")).read_text("utf-8")
        except (OSError, ValueError):
            return None

    return host_memory(read)


def _groups(read: ReadText) -> Iterator[tuple[PurePosixPath, _Names]]:
    """Yield this process's memory groups and all above them. A container sees some of them only."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, names = _MOUNTS, _VERSION_2
        elif "memory" in controllers.split(","):
            mount, names = _MOUNTS / "memory", _VERSION_1
        else:
            continue
        group = mount / path.lstrip("/")
        for above in (group, *group.parents):
            yield above, names
            if above == mount:
                break


def _used_bytes(read: ReadText, group: PurePosixPath, names: _Names) -> int:
    usage = _number(read(f"{group}/{names.usage}")) or 0
    reclaimable = _table(read(f"{group}/memory.stat") or "").get(names.reclaimable, 0)
    return max(0, usage - reclaimable)


def _number(text: str | None) -> int | None:
    """Return a file's number; None for `max` and for what cannot be read."""
    stripped = (text or "").strip()
    return int(stripped) if stripped.isdecimal() else None


def _table(text: str) -> dict[str, int]:
    """Return the numbers of lines such as `MemTotal:  24 kB` or `inactive_file 4096`, by their first word."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdecimal()}
