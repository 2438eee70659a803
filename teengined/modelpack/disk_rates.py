"""How fast the disks of some directories read, measured by a short direct read of a file of our own. Torch-free."""

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from teengined.core.errors import NotAllowed
from teengined.modelpack.spread import Disk

__all__ = ["measured_disks"]

# Large enough that the first read's seek does not count, small enough for a fraction of a second.
_SAMPLE_BYTES = 64 << 20
_CHUNK_BYTES = 4 << 20
_NUM_THREADS = 4
_NUM_PASSES = 3


def measured_disks(store: Path, paths: Sequence[Path]) -> tuple[Disk, ...]:
    """Return the store's disk and those of `paths`, each once: two directories of one disk are no faster than one.

    Raises:
        NotAllowed: one cannot be written to.
    """
    if not paths:
        return ()
    found: dict[int, Disk] = {}
    for path in (store, *paths):
        try:
            path.mkdir(parents=True, exist_ok=True)
            device = path.stat().st_dev
            if device not in found:
                found[device] = Disk(path=path, bytes_per_second=_rate(path))
        except OSError as error:
            raise NotAllowed(f"{path} cannot be used: {error.strerror}", hint="look at `store.paths`") from error
    return tuple(found.values())


def _rate(directory: Path) -> float:
    with tempfile.TemporaryFile(dir=directory) as file:
        block = os.urandom(1 << 20)
        for _ in range(_SAMPLE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return max(_read_once(file.fileno()) for _ in range(_NUM_PASSES))


def _read_once(written: int) -> float:
    flags = os.O_RDONLY | os.O_CLOEXEC
    path = f"/proc/self/fd/{written}"
    descriptor = -1
    with contextlib.suppress(OSError):  # a file system without direct reads
        descriptor = os.open(path, flags | os.O_DIRECT)
    descriptor = descriptor if descriptor >= 0 else os.open(path, flags)
    offsets = range(0, _SAMPLE_BYTES, _CHUNK_BYTES)

    def read(index: int) -> None:
        with mmap.mmap(-1, _CHUNK_BYTES) as buffer:
            for offset in offsets[index::_NUM_THREADS]:
                os.preadv(descriptor, [buffer], offset)

    try:
        start = time.perf_counter()
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(read, range(_NUM_THREADS)))
        return _SAMPLE_BYTES / max(time.perf_counter() - start, 1e-9)
    finally:
        os.close(descriptor)
