"""How busy the stages of a pipeline are and how many tokens leave it, over the last seconds. Pure: times come in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PipelineMeter"]

# What happened so long ago counts for a third. Long enough for a number that can be read, short enough for today's.
_WINDOW_SECONDS = 5.0


@dataclass(slots=True)
class PipelineMeter:
    """Decayed sums over the time with steps under way.

    They change only when a step is over at every stage, so that a stage that has reported is not held against one that
    is about to. A step longer than the window then stands for itself.
    """

    num_stages: int
    _num_in_flight: int = 0
    _counted_until: float = 0.0
    """Up to here time is in the sums; monotonic."""
    _active_seconds: float = 0.0
    _num_tokens: float = 0.0
    _busy_seconds: list[float] = field(init=False)
    bubble_seconds: list[float] = field(init=False)
    """For each stage, since the beginning: time with steps under way in which it had nothing to do. Never falls."""
    _all_active_seconds: float = 0.0
    _all_busy_seconds: list[float] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self._busy_seconds = [0.0] * self.num_stages
        self.bubble_seconds = [0.0] * self.num_stages
        self._all_busy_seconds = [0.0] * self.num_stages

    def start(self, now_seconds: float) -> None:
        """Note that a step went to the stages."""
        if self._num_in_flight == 0:
            self._counted_until = now_seconds
        self._num_in_flight += 1

    def finish(self, now_seconds: float, busy_seconds: Sequence[float], num_tokens: int) -> None:
        """Note that every stage is done with a step: how long each had to do with it, and how many tokens it drew."""
        elapsed = max(0.0, now_seconds - self._counted_until)
        keep = math.exp(-elapsed / _WINDOW_SECONDS)
        self._active_seconds = self._active_seconds * keep + elapsed
        self._num_tokens = self._num_tokens * keep + num_tokens
        self._busy_seconds = [
            before * keep + seconds for before, seconds in zip(self._busy_seconds, busy_seconds, strict=True)
        ]
        self._add_up(elapsed, busy_seconds)
        self._counted_until = now_seconds
        self._num_in_flight = max(0, self._num_in_flight - 1)

    def _add_up(self, elapsed: float, busy_seconds: Sequence[float]) -> None:
        """Keep the sums since the beginning. Steps overlap, so one alone may be longer than what passed meanwhile."""
        self._all_active_seconds += elapsed
        for index, seconds in enumerate(busy_seconds):
            self._all_busy_seconds[index] += seconds
            idle = self._all_active_seconds - self._all_busy_seconds[index]
            self.bubble_seconds[index] = max(self.bubble_seconds[index], idle)

    def abandon(self) -> None:
        """Note that no step is under way any more, because the stages were lost."""
        self._num_in_flight = 0

    @property
    def bubbles(self) -> tuple[float, ...]:
        """For each stage the share of the time with steps under way in which it had nothing to do; 0 before any."""
        if self._active_seconds <= 0:
            return (0.0,) * self.num_stages
        return tuple(min(1.0, max(0.0, 1 - busy / self._active_seconds)) for busy in self._busy_seconds)

    def tokens_per_second(self, now_seconds: float) -> float:
        """Return the rate of all sequences together; 0 after a window without a step."""
        waiting = now_seconds - self._counted_until
        if self._num_in_flight == 0:
            waiting = 0.0 if waiting < _WINDOW_SECONDS else math.inf
        active = self._active_seconds + waiting
        return self._num_tokens / active if active > 0 else 0.0
