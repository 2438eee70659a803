"""Reads of single experts, several at once, and the waiting for them."""

import threading
import time
from dataclasses import dataclass
from enum import Enum, auto

from teengined.core.errors import DeadlineExceeded, InternalError, TeengineError
from teengined.core.model import UnitSpec
from teengined.weights.read_clock import ReadClock
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget
from teengined.weights.statistics import StreamStatistics

__all__ = ["ExpertReads", "Landing"]


class _Purpose(Enum):
    """Why an expert is read."""

    ASKED = auto()
    GUESSED = auto()
    WRONG = auto()


@dataclass(eq=False, slots=True)
class Landing:
    """A read under way, or over. Written by the thread that ends it."""

    unit: UnitSpec
    is_done: bool = False
    error: TeengineError | None = None
    purpose: _Purpose = _Purpose.ASKED
    read: GroupRead | None = None
    """While it is under way."""


class ExpertReads:
    """Starts reads and waits for them. All but the end of a read happens on one thread; the pool bounds what runs."""

    def __init__(self, pool: ReadPool, clock: ReadClock, *, timeout_seconds: float) -> None:
        """Read through `pool`. A wait lasts `timeout_seconds` at most."""
        self._pool = pool
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._changed = threading.Condition()
        self._closed = False
        self._asked_bytes = self._wrong_bytes = self._num_reads = 0
        self._stall_seconds = 0.0

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is being read, neither here nor by the ring."""
        return self._clock.is_idle

    def begin(self, unit: UnitSpec, memory: memoryview, *, is_guess: bool = False) -> Landing:
        """Start to fill `memory`, which is page aligned and exactly as large as the unit; return at once.

        A guess is to be kept or cancelled later.
        """
        landing = Landing(unit, purpose=_Purpose.GUESSED if is_guess else _Purpose.ASKED)

        def on_done(read: GroupRead) -> None:
            with self._changed:
                self._clock.stop()
                self._num_reads += read.num_reads
                landing.error, landing.is_done = read.error, True
                self._count(landing)
                self._changed.notify_all()

        self._clock.start()
        landing.read = GroupRead([UnitTarget(unit=unit, memory=memory)], on_done)
        self._pool.submit(landing.read)
        return landing

    def keep(self, landing: Landing) -> bool:
        """Let a guess be a read that was asked for; False where it failed already, so that it is none."""
        with self._changed:
            landing.purpose = _Purpose.ASKED if landing.error is None else _Purpose.WRONG
            if landing.is_done:
                self._count(landing)
            return landing.error is None

    def cancel(self, landing: Landing) -> None:
        """Let go of a guess. What it reads into is free when it is done, which is soon."""
        with self._changed:
            landing.purpose = _Purpose.WRONG
            if landing.is_done:
                self._count(landing)
            elif landing.read is not None:
                landing.read.cancel()

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
                streamed_bytes=self._asked_bytes + self._wrong_bytes,
                stall_seconds=self._stall_seconds,
                reads=self._num_reads,
                expert_bytes=self._asked_bytes,
                wrong_guess_bytes=self._wrong_bytes,
            )

    def _count(self, landing: Landing) -> None:
        """Count the bytes of a read that is over, once its purpose is known. The caller holds the lock."""
        if landing.purpose is _Purpose.GUESSED:
            return
        read, landing.read = landing.read, None  # whose memory is not to be held on to
        if landing.purpose is _Purpose.ASKED:
            self._asked_bytes += landing.unit.size_bytes
        elif read is not None:
            self._wrong_bytes += read.read_bytes

    def stop(self) -> None:
        """Wake whoever waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
