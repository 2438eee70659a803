"""Memory that is never swapped out: pages are locked when they are first touched, not before."""

import ctypes
import os
import resource
from typing import Any

from teengined.core.errors import OutOfDeviceMemory
from teengined.core.quantities import format_bytes

__all__ = ["lock_memory", "unlock_memory"]

_MLOCK_ONFAULT = 1


def lock_memory(address: int, num_bytes: int) -> None:
    """Lock whole pages at `address`.

    Raises:
        OutOfDeviceMemory: the limit on locked memory forbids it; says what it is.
    """
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.mlock2(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), _MLOCK_ONFAULT) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = "unlimited" if limit == resource.RLIM_INFINITY else format_bytes(limit)
    raise OutOfDeviceMemory(
        f"{format_bytes(num_bytes)} of host memory cannot be locked: {reason}; the limit on locked memory is {allowed}",
        hint="raise it (LimitMEMLOCK= in the unit, `ulimit -l` in a shell), or set the device's `lock` to false",
    )


def unlock_memory(address: int, num_bytes: int) -> None:
    """Let whole pages at `address` be swapped out, and given back, again."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes))
