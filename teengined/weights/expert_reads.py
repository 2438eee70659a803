"""Reads of single experts, several at once, and the waiting for them."""

import threading
import time
from dataclasses import dataclass

from teengined.core.errors import DeadlineExceeded, InternalError, TeengineError
from teengined.core.model import UnitSpec
from teengined.weights.read_clock import ReadClock
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget
from teengined.weights.statistics import StreamStatistics

__all__ = ["ExpertReads", "Landing"]


@dataclass(eq=False, slots=True)
class Landing:
    """A read under way, or over. Written by the thread that ends it."""

    unit: UnitSpec
    is_done: bool = False
    error: TeengineError | None = None


class ExpertReads:
    """Starts reads and waits for them. All but the end of a read happens on one thread; the pool bounds what runs."""

    def __init__(self, pool: ReadPool, clock: ReadClock, *, timeout_seconds: float) -> None:
        """Read through `pool`. A wait lasts `timeout_seconds` at most."""
        self._pool = pool
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._changed = threading.Condition()
        self._closed = False
        self._read_bytes = self._num_reads = 0
        self._stall_seconds = 0.0

    def begin(self, unit: UnitSpec, memory: memoryview) -> Landing:
        """Start to fill `memory`, which is page aligned and exactly as large as the unit; return at once."""
        landing = Landing(unit)

        def on_done(read: GroupRead) -> None:
            with self._changed:
                self._clock.stop()
                self._num_reads += read.num_reads
                self._read_bytes += unit.size_bytes
                landing.error, landing.is_done = read.error, True
                self._changed.notify_all()

        self._clock.start()
        self._pool.submit(GroupRead([UnitTarget(unit=unit, memory=memory)], on_done))
        return landing

    def wait(self, landing: Landing) -> None:
        """Return when the unit is there.

        Raises:
            PackageError, PackageCorrupt: as `StageWeights.acquire`.
            DeadlineExceeded: it did not arrive in time.
        """
        self.settle(landing)
        if landing.error is not None:
            raise type(landing.error)(landing.error.message, hint=landing.error.hint) from landing.error

    def settle(self, landing: Landing) -> None:
        """Return when the read is over, well or not. Raises DeadlineExceeded as `wait`."""
        if landing.is_done:
            return
        started = time.perf_counter()
        with self._changed:
            arrived = self._changed.wait_for(lambda: landing.is_done or self._closed, self._timeout_seconds)
        self._stall_seconds += time.perf_counter() - started
        if self._closed:
            raise InternalError(f"the weights were closed while waiting for {landing.unit.id}")
        if not arrived:
            raise DeadlineExceeded(
                f"{landing.unit.id} did not arrive within {self._timeout_seconds:g} s", hint="check the disk (`dmesg`)"
            )

    @property
    def statistics(self) -> StreamStatistics:
        """Return the counters so far; the clock's time is not among them."""
        with self._changed:
            return StreamStatistics(
                streamed_bytes=self._read_bytes, stall_seconds=self._stall_seconds, reads=self._num_reads
            )

    def stop(self) -> None:
        """Wake whoever waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
