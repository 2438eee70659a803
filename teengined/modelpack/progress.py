"""How far a long job is, and how long it will still take. Time is passed in."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressMeter", "ReportProgress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a job. Amounts are bytes."""

    phase: str
    done: int
    total: int
    bytes_per_second: float
    eta_seconds: float | None
    """None until there is a rate."""


ReportProgress = Callable[[Progress], None]


class ProgressMeter:
    """Turns amounts into rate and remaining time, and reports no more often than asked."""

    def __init__(
        self,
        phase: str,
        total: int,
        *,
        report: ReportProgress,
        clock: Callable[[], float],
        interval_seconds: float = 0.2,
    ) -> None:
        """Start at zero now. `interval_seconds` spaces reports out (0.2: smooth to the eye, cheap on a pipe)."""
        self._phase, self._total = phase, total
        self._report, self._clock, self._interval = report, clock, interval_seconds
        self._start = clock()
        self._last = float("-inf")
        self._credited = 0
        self._done = 0

    def credit(self, amount: int) -> None:
        """Count what an earlier run had done; it does not enter the rate."""
        self._credited += amount
        self.advance(amount)

    def advance(self, amount: int) -> None:
        """Count work done and report when it is time."""
        self._done += amount
        now = self._clock()
        if now - self._last < self._interval and self._done < self._total:
            return
        self._last = now
        worked, elapsed = self._done - self._credited, now - self._start
        rate = worked / elapsed if elapsed > 0 and worked > 0 else 0.0
        remaining = max(self._total - self._done, 0)
        self._report(
            Progress(
                phase=self._phase,
                done=min(self._done, self._total),
                total=self._total,
                bytes_per_second=rate,
                eta_seconds=remaining / rate if rate else None,
            )
        )
