"""How far a long job is: a redrawn line on a terminal, a line every few seconds elsewhere, or JSON lines."""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from teengined.core.quantities import format_bytes, format_seconds

__all__ = ["JsonProgress", "LineProgress", "Progress", "Step", "TerminalProgress", "open_progress", "step_line"]

_BAR_CELLS = 16
_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 5.0
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One state of one job."""

    label: str
    """What is done to what: `converting smollm2`."""
    done: int
    total: int
    unit: str = "bytes"
    bytes_per_second: float | None = None
    """None: the sink works out the average since the label's first step."""
    eta_seconds: float | None = None


class Progress(ABC):
    """Where steps go. One label is one line."""

    @abstractmethod
    def show(self, step: Step) -> None:
        """Take the newest state."""

    @abstractmethod
    def close(self) -> None:
        """Leave the stream at the start of a line. Safe to call twice."""


def open_progress(stream: TextIO | None = None, *, json_lines: bool = False) -> Progress:
    """Return the sink that suits `stream` (standard error); with `json_lines` they go to standard output."""
    if json_lines:
        return JsonProgress(sys.stdout)
    target: TextIO = stream or sys.stderr
    return TerminalProgress(target, time.monotonic) if target.isatty() else LineProgress(target, time.monotonic)


class _Rated(Progress):
    """Knows when each label began, so that a rate and a remaining time can be told."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], seconds_between: float) -> None:
        self._stream, self._clock, self._seconds_between = stream, clock, seconds_between
        self._label = ""
        self._began_seconds = self._shown_seconds = 0.0
        self._began_done = 0
        self._pending: Step | None = None
        self._drawn: tuple[int, int] | None = None
        """Amounts of the label that are on the stream already: the end of a job may be told more than once."""

    def show(self, step: Step) -> None:
        """Draw the step if it is a new label, the last of its label, or due."""
        now_seconds = self._clock()
        if step.label != self._label:
            self.close()
            self._label, self._began_seconds, self._began_done = step.label, now_seconds, step.done
            self._shown_seconds, self._drawn = float("-inf"), None
        if (step.done, step.total) == self._drawn:
            return
        self._pending = step
        if now_seconds - self._shown_seconds >= self._seconds_between or step.done >= step.total:
            self._draw(now_seconds)

    def _draw(self, now_seconds: float) -> None:
        if self._pending is None:
            return
        elapsed_seconds = now_seconds - self._began_seconds
        self._shown_seconds = now_seconds
        self._drawn = (self._pending.done, self._pending.total)
        self._put(step_line(_rated(self._pending, self._began_done, elapsed_seconds)))
        self._pending = None

    @abstractmethod
    def _put(self, line: str) -> None: ...


class TerminalProgress(_Rated):
    """Redraws one line."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        """Draw on `stream` at most ten times a second."""
        super().__init__(stream, clock, _REDRAW_SECONDS)
        self._open = False

    def _put(self, line: str) -> None:
        self._open = True
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()

    def close(self) -> None:
        """Draw what is pending and end the line."""
        self._draw(self._clock())
        if self._open:
            self._open = False
            self._stream.write("\n")
            self._stream.flush()


class LineProgress(_Rated):
    """Writes a line at most every five seconds, for logs."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        """Write to `stream`."""
        super().__init__(stream, clock, _LINE_SECONDS)

    def _put(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Write what is pending."""
        self._draw(self._clock())


class JsonProgress(Progress):
    """Writes every step as one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def show(self, step: Step) -> None:
        """Write the step; figures that are not known are null."""
        record = {
            "event": "progress",
            "label": step.label,
            "done": step.done,
            "total": step.total,
            "unit": step.unit,
            "bytes_per_second": step.bytes_per_second,
            "eta_seconds": step.eta_seconds,
        }
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing is pending."""


def _rated(step: Step, began_done: int, elapsed_seconds: float) -> Step:
    """Return `step` with rate and remaining time filled in from the average since its label began."""
    if step.bytes_per_second is not None or elapsed_seconds <= 0 or step.done <= began_done:
        return step
    rate = (step.done - began_done) / elapsed_seconds
    return Step(
        label=step.label,
        done=step.done,
        total=step.total,
        unit=step.unit,
        bytes_per_second=rate,
        eta_seconds=max(step.total - step.done, 0) / rate,
    )


def step_line(step: Step) -> str:
    """Return `label:  67% ▕██████▋   ▏ 6.2 GB/9.3 GB  11 MB/s  4m28s`."""
    share = min(step.done / step.total, 1.0) if step.total > 0 else 1.0
    parts = [f"{step.label}: {int(share * 100):3d}% ▕{_bar(share)}▏ {_amount(step)}"]
    if step.unit == "bytes" and step.bytes_per_second:
        parts.append(f"{format_bytes(step.bytes_per_second)}/s")
    if step.eta_seconds and share < 1:
        parts.append(format_seconds(step.eta_seconds))
    return "  ".join(parts)


def _bar(share: float) -> str:
    eighths = int(share * _BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    bar = "█" * full + (_EIGHTHS[rest] if rest else "")
    return bar.ljust(_BAR_CELLS)


def _amount(step: Step) -> str:
    if step.unit == "bytes":
        return f"{format_bytes(step.done)}/{format_bytes(step.total)}"
    return f"{step.done}/{step.total} {step.unit}"
