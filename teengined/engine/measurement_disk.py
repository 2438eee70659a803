"""How fast the disk of a directory reads, through the code that the streaming ring reads with. Imports no torch."""

import contextlib
import errno
import fcntl
import mmap
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from teengined.core.errors import DeadlineExceeded, DiskFull, DriverError
from teengined.core.model import UnitKind, UnitSpec
from teengined.weights.digests import DigestCheck
from teengined.weights.options import StreamOptions
from teengined.weights.package_files import PackageFiles
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget

__all__ = ["disk_read_bytes_per_second"]

_UNIT_BYTES = 32 << 20
_MAX_UNITS, _MIN_UNITS = 16, 2
# A disk that writes slowly gets a smaller file, not a longer measurement.
_WRITE_SECONDS = 1.5
_READ_SECONDS = 1.0
_MAX_PASSES = 5
_DESCRIPTORS = Path("/proc/self/fd")


def disk_read_bytes_per_second(directory: Path, options: StreamOptions) -> float:
    """Write a temporary file without a name, read it several times past the page cache, and return the median rate.

    The file is gone with this process, however it ends.

    Raises:
        DiskFull: there is no room for the file.
        DriverError: the directory cannot be written or read.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            num_units = _write(file)
            rates: list[float] = []
            started = time.monotonic()
            while len(rates) < _MAX_PASSES and (not rates or time.monotonic() - started < _READ_SECONDS):
                rates.append(_read(_units(file.fileno(), num_units), options))
    except OSError as error:
        kind = DiskFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else DriverError
        raise kind(
            f"the disk of {directory} cannot be measured: {error.strerror}",
            hint="make room there, or set `store.dir` to another disk",
        ) from error
    return statistics.median(rates)


def _write(file: IO[bytes]) -> int:
    """Fill the file past the page cache where that is possible, and return how many units it holds."""
    descriptor = file.fileno()
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with contextlib.suppress(OSError):  # else it goes through the cache, which is emptied of it below
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
    started = time.monotonic()
    with mmap.mmap(-1, _UNIT_BYTES) as content:
        noise = os.urandom(1 << 20)
        for start in range(0, _UNIT_BYTES, len(noise)):
            content[start : start + len(noise)] = noise
        num_units = 0
        while num_units < _MIN_UNITS or (num_units < _MAX_UNITS and time.monotonic() - started < _WRITE_SECONDS):
            if os.pwrite(descriptor, content, num_units * _UNIT_BYTES) != _UNIT_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            num_units += 1
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return num_units


def _read(units: Sequence[UnitSpec], options: StreamOptions) -> float:
    """Read every unit once through a ring of buffers and return bytes per second."""
    files = PackageFiles(_DESCRIPTORS, units, direct_io=True)
    pool = ReadPool(
        files,
        num_threads=options.read_threads,
        chunk_bytes=options.read_chunk_bytes,
        digests=DigestCheck(enabled=False),
    )
    buffers = [_buffer() for _ in range(options.ring_slots)]
    started = time.perf_counter()
    try:
        waiting: deque[_Pending] = deque()
        for index, unit in enumerate(units):
            if len(waiting) == len(buffers):
                waiting.popleft().wait(options.timeout_seconds)
            waiting.append(_Pending(pool, UnitTarget(unit=unit, memory=memoryview(buffers[index % len(buffers)]))))
        for pending in waiting:
            pending.wait(options.timeout_seconds)
        seconds = time.perf_counter() - started
    finally:
        pool.close(options.timeout_seconds)
        files.close()
    return len(units) * _UNIT_BYTES / seconds


def _buffer() -> mmap.mmap:
    """Return memory in huge pages where the system gives them, as the ring's is: small ones slow a fast disk down."""
    buffer = mmap.mmap(-1, _UNIT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


class _Pending:
    """A read under way."""

    def __init__(self, pool: ReadPool, target: UnitTarget) -> None:
        self._done = threading.Event()
        self._read = GroupRead([target], lambda _: self._done.set())
        pool.submit(self._read)

    def wait(self, timeout_seconds: float) -> None:
        """Return when it is there; raise what went wrong instead."""
        if not self._done.wait(timeout_seconds):
            raise DeadlineExceeded(f"the disk gave nothing for {timeout_seconds:g} s")
        if self._read.error is not None:
            raise self._read.error


def _units(descriptor: int, num_units: int) -> list[UnitSpec]:
    """Describe the file as a package would, so that it is read as one."""
    return [
        UnitSpec(
            id=f"sample.{index}",
            kind=UnitKind.LAYER,
            layer=index,
            expert=None,
            precision="",
            file=str(descriptor),
            offset_bytes=index * _UNIT_BYTES,
            size_bytes=_UNIT_BYTES,
            num_parameters=0,
            digest="",
            tensors=(),
        )
        for index in range(num_units)
    ]
