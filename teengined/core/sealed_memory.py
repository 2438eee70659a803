"""Host memory that one process fills and many read: written once, then sealed, after which nobody can change it.

A memfd has no name that could be left behind, no size limit of a mounted file system, and goes with the last process
that has it. Its seal against writing is set by the kernel at once and for ever, so it also tells whether the memory
was filled to its end: whoever dies before leaves memory without it.
"""

import errno
import fcntl
import mmap
import os

from teengined.core.errors import CapacityError, InternalError
from teengined.core.quantities import format_bytes

__all__ = ["create_memory", "fill_memory", "is_sealed", "map_memory"]

# MFD_NOEXEC_SEAL of Linux 6.3: nothing in it is ever run. Some hosts demand it, older kernels do not know it.
_NOEXEC_SEAL = 0x0008
_FLAGS = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_FIXED_SIZE = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
# One write moves a little less than 2 GiB at most; shorter ones let other threads in.
_WRITE_BYTES = 64 << 20


def create_memory(name: str, size_bytes: int) -> int:
    """Return the descriptor of memory of a fixed size, whose pages come as they are written. The caller closes it.

    Raises:
        CapacityError: the system has no descriptor or no memory for it.
    """
    try:
        descriptor = _create(name)
    except OSError as error:
        raise CapacityError(
            f"the system gives no descriptor for {format_bytes(size_bytes)} of shared memory: {error.strerror}",
            hint="raise the limit on open files (LimitNOFILE= in the unit, `ulimit -n` in a shell)",
        ) from error
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FIXED_SIZE)
    except OSError as error:
        os.close(descriptor)
        raise CapacityError(f"no {format_bytes(size_bytes)} of shared memory: {error.strerror}") from error
    return descriptor


def fill_memory(descriptor: int, content: memoryview) -> None:
    """Write everything, then seal it.

    Raises:
        CapacityError: the system has no memory for it.
        InternalError: the content is not as long as the memory, or somebody sealed it before.
    """
    if len(content) != os.fstat(descriptor).st_size:
        raise InternalError(f"{len(content)} bytes for shared memory of {os.fstat(descriptor).st_size}")
    done = 0
    try:
        while done < len(content):
            done += os.pwrite(descriptor, content[done : done + _WRITE_BYTES], done)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise InternalError("shared memory was sealed before it was filled") from error
        raise CapacityError(f"no {format_bytes(len(content))} of shared memory: {error.strerror}") from error


def is_sealed(descriptor: int) -> bool:
    """Say whether the memory was filled to its end."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)


def map_memory(descriptor: int, size_bytes: int) -> mmap.mmap:
    """Return sealed memory, mapped for reading, its pages at hand.

    Raises:
        InternalError: it is not sealed, or of another size.
        CapacityError: the system refuses the address space.
    """
    if not is_sealed(descriptor) or os.fstat(descriptor).st_size != size_bytes:
        raise InternalError(f"shared memory of {size_bytes} bytes is not sealed, or of another size")
    try:
        return mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    except OSError as error:
        raise CapacityError(f"no address space for {format_bytes(size_bytes)}: {error.strerror}") from error


def _create(name: str) -> int:
    try:
        return os.memfd_create(name, _FLAGS | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, _FLAGS)
