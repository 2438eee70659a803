"""Makes a block device slow for a test, by the kernel's own throttle on control groups of version 1."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

__all__ = ["throttled"]

_MOUNT = Path("/sys/fs/cgroup/blkio")


@contextlib.contextmanager
def throttled(device: str, *, bytes_per_second: int) -> Generator[None]:
    """Let processes of this one's control group read at most so much from the device, until the block ends."""
    number = Path(device).stat().st_rdev
    place = f"{os.major(number)}:{os.minor(number)}"
    file = _own_group() / "blkio.throttle.read_bps_device"
    if not os.access(file, os.W_OK):
        pytest.skip(f"{file} is not there or not writable")
    file.write_text(f"{place} {bytes_per_second}")
    try:
        yield
    finally:
        file.write_text(f"{place} 0")


def _own_group() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "blkio" in controllers.split(","):
            return _MOUNT / path.lstrip("/")
    return _MOUNT
