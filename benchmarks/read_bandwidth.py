"""How fast this machine reads: large parallel reads of given files past the page cache, and memory by all cores.

The yardsticks of the streaming benchmark. Independent of the engine's own reading code on purpose.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

__all__ = ["disk_bytes_per_second", "memory_bytes_per_second"]

_CHUNK_BYTES = 4 << 20
_NUM_THREADS = 4
_MEMORY_BYTES = 512 << 20


def disk_bytes_per_second(files: Sequence[Path], max_bytes: int, num_passes: int = 3) -> float:
    """Read up to `max_bytes` of `files` with O_DIRECT, several chunks at a time, and return the best pass's rate.

    The same bytes several times, as streaming reads them: disks and hypervisors have caches of their own.
    """
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files]
    try:
        chunks = [
            (descriptor, offset)
            for descriptor in descriptors
            for offset in range(0, os.fstat(descriptor).st_size // _CHUNK_BYTES * _CHUNK_BYTES, _CHUNK_BYTES)
        ][: max_bytes // _CHUNK_BYTES]
        buffers = [_buffer() for _ in range(_NUM_THREADS)]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return max(_read_pass(pool, chunks, buffers) for _ in range(num_passes))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _buffer() -> mmap.mmap:
    """Return memory in huge pages where the system gives them: a read into small ones costs a segment for each."""
    buffer = mmap.mmap(-1, _CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _read_pass(pool: ThreadPoolExecutor, chunks: Sequence[tuple[int, int]], buffers: Sequence[mmap.mmap]) -> float:
    shares = [chunks[index::_NUM_THREADS] for index in range(_NUM_THREADS)]
    start = time.perf_counter()
    num_bytes = sum(pool.map(_read_all, shares, buffers))
    return num_bytes / (time.perf_counter() - start)


def _read_all(chunks: Sequence[tuple[int, int]], buffer: mmap.mmap) -> int:
    return sum(os.preadv(descriptor, [buffer], offset) for descriptor, offset in chunks)


def memory_bytes_per_second() -> float:
    """Return the best of a few passes over memory far larger than the caches, with torch's threads."""
    block = torch.ones(_MEMORY_BYTES // 4)
    rates: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        rates.append(_MEMORY_BYTES / (time.perf_counter() - start))
    return max(rates)
