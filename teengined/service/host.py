"""What the kernel tells about this host and this process. Small reads of /proc and /sys."""

from pathlib import Path

from teengined.core.memory_limits import read_host_memory

__all__ = ["available_memory_bytes", "rss_bytes"]


def available_memory_bytes() -> int:
    """Return what could be allocated now: the host's available memory, or what a control group leaves if less."""
    return read_host_memory().available_bytes


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
