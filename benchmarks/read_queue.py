"""How a disk is best read: threads that each wait for a read, or one that keeps reads in an io_uring.

    python -m benchmarks.read_queue DIRECTORY [--json]

Writes a file there and reads it past the page cache in chunks, with several reads in flight. Ways take turns, so that a
disk that changes its speed changes it for all; figures are medians, with the processor's seconds for each gigabyte.
"""

import argparse
import mmap
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.table import print_json, print_table
from benchmarks.uring import Uring

__all__ = ["Case", "main", "read_cases"]

FILE_BYTES = 512 << 20
DEPTHS = (1, 2, 4, 8, 16)
CHUNKS_BYTES = (1 << 20, 4 << 20, 16 << 20)
_NUM_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way of reading."""

    way: str
    """`threads` or `io_uring`."""
    reads_in_flight: int
    chunk_bytes: int
    bytes_per_second: float
    cpu_seconds_per_gb: float


def read_cases(descriptor: int, num_bytes: int) -> list[Case]:
    """Read the file in every way, in turns."""
    ways: dict[str, Callable[[int, Sequence[int], int, int], None]] = {"threads": _by_threads, "io_uring": _by_uring}
    measured: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for _ in range(_NUM_ROUNDS):
        for chunk_bytes in CHUNKS_BYTES:
            for depth in DEPTHS:
                for way, read in ways.items():
                    offsets = range(0, num_bytes, chunk_bytes)
                    cpu, start = _cpu_seconds(), time.perf_counter()
                    read(descriptor, offsets, chunk_bytes, depth)
                    seconds = time.perf_counter() - start
                    measured.setdefault((way, depth, chunk_bytes), []).append((seconds, _cpu_seconds() - cpu))
    return [
        Case(
            way=way,
            reads_in_flight=depth,
            chunk_bytes=chunk_bytes,
            bytes_per_second=num_bytes / statistics.median(seconds for seconds, _ in runs),
            cpu_seconds_per_gb=statistics.median(cpu for _, cpu in runs) / num_bytes * 1e9,
        )
        for (way, depth, chunk_bytes), runs in measured.items()
    ]


def _by_threads(descriptor: int, offsets: Sequence[int], chunk_bytes: int, depth: int) -> None:
    buffers = [_buffer(chunk_bytes) for _ in range(depth)]

    def read(index: int) -> None:
        for offset in offsets[index::depth]:
            os.preadv(descriptor, [buffers[index]], offset)

    with ThreadPoolExecutor(depth) as pool:
        list(pool.map(read, range(depth)))


def _by_uring(descriptor: int, offsets: Sequence[int], chunk_bytes: int, depth: int) -> None:
    buffers = [_buffer(chunk_bytes) for _ in range(depth)]
    with Uring(depth) as ring:
        waiting = iter(offsets)
        num_in_flight = 0
        for slot, offset in zip(range(depth), waiting, strict=False):
            ring.read(descriptor, buffers[slot], offset, tag=slot)
            num_in_flight += 1
        while num_in_flight:
            slot = ring.wait()
            num_in_flight -= 1
            if (offset := next(waiting, None)) is not None:
                ring.read(descriptor, buffers[slot], offset, tag=slot)
                num_in_flight += 1


def _buffer(num_bytes: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile(dir=arguments.directory) as file:
        block = os.urandom(1 << 20)
        for _ in range(FILE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        descriptor = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        cases = read_cases(descriptor, FILE_BYTES)
        os.close(descriptor)
    if arguments.json:
        print_json({"cases": [asdict(case) for case in cases]})
    else:
        rows = [
            [
                case.way,
                str(case.reads_in_flight),
                f"{case.chunk_bytes >> 20} MiB",
                f"{case.bytes_per_second / 1e9:.2f}",
                f"{case.cpu_seconds_per_gb:.3f}",
            ]
            for case in cases
        ]
        print_table(("way", "in flight", "chunk", "GB/s", "CPU s/GB"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
