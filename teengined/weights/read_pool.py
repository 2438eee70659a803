"""Threads that keep several large reads in flight and check what they read."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from teengined.core.errors import InternalError, TeengineError
from teengined.core.model import UnitSpec
from teengined.weights.digests import DigestCheck
from teengined.weights.package_files import PackageFile, PackageFiles

__all__ = ["GroupRead", "ReadPool", "UnitTarget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTarget:
    """A unit and the host memory that it is read into: page aligned, exactly its size."""

    unit: UnitSpec
    memory: memoryview
    cached: bool = False
    """Through the page cache, where it may already be."""


class GroupRead:
    """Units read together. `on_done` is called once, in a reading thread, when all are there or one failed."""

    def __init__(self, targets: Sequence[UnitTarget], on_done: "Callable[[GroupRead], None]") -> None:
        """Describe the read; `ReadPool.submit` starts it."""
        self.targets = tuple(targets)
        self.num_reads = 0
        self.read_bytes = 0
        """That came, so far."""
        self.is_cancelled = False
        self.error: TeengineError | None = None
        self._on_done = on_done
        self._lock = threading.Lock()
        self._pending = 0

    def expect(self, num_parts: int) -> None:
        """Await `num_parts` calls of `settle`; none: done at once."""
        self._pending = num_parts
        if num_parts == 0:
            self._on_done(self)

    def cancel(self) -> None:
        """Read no more of it than what is being read now; it ends with an error."""
        self.is_cancelled = True

    def count(self, num_bytes: int) -> None:
        """Note what came."""
        with self._lock:
            self.read_bytes += num_bytes

    def settle(self, error: TeengineError | None) -> None:
        """Count one part as ended; the first error is kept."""
        with self._lock:
            self.error = self.error or error
            self._pending -= 1
            if self._pending:
                return
        self._on_done(self)


class _UnitRead:
    """One unit's chunks; the thread that ends the last one checks the digest."""

    __slots__ = ("error", "file", "group", "lock", "pending", "target")

    def __init__(self, group: GroupRead, target: UnitTarget, file: PackageFile, num_chunks: int) -> None:
        self.group = group
        self.target = target
        self.file = file
        self.pending = num_chunks
        self.error: TeengineError | None = None
        self.lock = threading.Lock()

    def settle(self, error: TeengineError | None) -> bool:
        """Count one chunk as ended and say whether it was the last."""
        with self.lock:
            self.error = self.error or error
            self.pending -= 1
            return self.pending == 0


class ReadPool:
    """Reads in the order of `submit`, several chunks at once. The queue is bounded by what callers hold buffers for."""

    def __init__(self, files: PackageFiles, *, num_threads: int, chunk_bytes: int, digests: DigestCheck) -> None:
        """Start the threads."""
        self._files = files
        self._chunk_bytes = chunk_bytes
        self._digests = digests
        self._queue: SimpleQueue[tuple[_UnitRead, int, int] | None] = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"weights-read-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, read: GroupRead) -> None:
        """Queue a read and return at once."""
        parts: list[tuple[_UnitRead, int, int]] = []
        for target in read.targets:
            size = len(target.memory)
            starts = range(0, size, self._chunk_bytes)
            unit = _UnitRead(read, target, self._files.of(target.unit), len(starts))
            parts.extend((unit, start, min(start + self._chunk_bytes, size)) for start in starts)
        read.num_reads = len(parts)
        read.expect(len(read.targets))
        for part in parts:
            self._queue.put(part)

    def close(self, timeout_seconds: float) -> bool:
        """End the threads; what is queued is not read any more. Return whether all ended in time.

        A thread that hangs in the kernel may still write to its buffer, which must then not be freed.
        """
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (part := self._queue.get()) is not None:
            unit, start, end = part
            error: TeengineError | None = None
            try:
                self._read_chunk(unit, start, end)
            except TeengineError as known:
                error = _detached(known)
            except Exception as unknown:  # noqa: BLE001 - a thread that died silently would be a hang for its reader
                error = _unexpected(unit.target.unit, unknown)
            if unit.settle(error):
                unit.group.settle(self._checked(unit))

    def _read_chunk(self, unit: _UnitRead, start: int, end: int) -> None:
        target = unit.target
        what = f"unit {target.unit.id}"
        if self._closed:
            raise InternalError(f"{what}: closed while it was being read")
        if unit.group.is_cancelled:
            raise InternalError(f"{what}: cancelled while it was being read")
        if unit.error is not None:
            return
        read = unit.file.read_cached if target.cached else unit.file.read
        read(target.unit.offset_bytes + start, target.memory[start:end], what)
        unit.group.count(end - start)

    def _checked(self, unit: _UnitRead) -> TeengineError | None:
        """Return what is wrong with a unit that was read to its end, if anything."""
        if unit.error is not None:
            return unit.error
        try:
            unit.file.check_unchanged(f"unit {unit.target.unit.id}")
            if unit.file.take_suspicion():
                self._digests.suspect(unit.target.unit.file)
            self._digests.check(unit.target.unit, unit.target.memory)
        except TeengineError as known:
            return _detached(known)
        except Exception as unknown:  # noqa: BLE001 - as above
            return _unexpected(unit.target.unit, unknown)
        return None


def _unexpected(unit: UnitSpec, error: Exception) -> InternalError:
    internal = InternalError(f"unit {unit.id}: reading failed unexpectedly: {error!r}", hint="please report this")
    internal.__cause__ = error.with_traceback(None)
    return internal


def _detached(error: TeengineError) -> TeengineError:
    """Drop tracebacks, whose frames would hold on to the buffer that was read into."""
    if error.__cause__ is not None:
        error.__cause__ = error.__cause__.with_traceback(None)
    error.__context__ = None
    return error.with_traceback(None)
