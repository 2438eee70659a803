"""What the kernel tells about this host and this process. Small reads of /proc and /sys."""

from pathlib import Path

__all__ = ["available_memory_bytes", "rss_bytes"]

_CGROUP_PAIRS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_memory_bytes() -> int:
    """Return what may still be used: the host's available memory, or what the control group leaves if that is less."""
    bounds = [_meminfo("MemAvailable")]
    for limit, usage in _CGROUP_PAIRS:
        try:
            bounds.append(max(0, int(limit.read_text()) - int(usage.read_text())))
        except (OSError, ValueError):
            continue  # Another cgroup version, or "max".
    return min(bounds)


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
