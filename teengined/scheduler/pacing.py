"""How many prompt tokens run beside answers that are being read.

A step's time grows with its rows, and everyone in it waits for it. Beside decoding sequences a step may take `stretch`
times as long as one that only decodes; how many prompt tokens that is depends on the model, the device, and on what is
streamed. So the time of a step by its number of rows is learned from all steps, whatever their rows were. Where many
prompts wait and few sequences decode, the few give way to the many: who waits has nothing yet to read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Pacer"]

# Fewer are never worth a step of their own: progress of prompts is promised too.
_LEAST_TOKENS = 8
# Where nothing was measured yet.
_FIRST_TOKENS = 64
# A prompt that waits behind another counts as so many sequences that decode.
_EAGERNESS = 2.0
_NEWEST = 0.2
# One odd step counts as no more than this many times what was expected, nor as less than its inverse.
_MOST_SURPRISE = 2.0


@dataclass(slots=True, kw_only=True)
class Pacer:
    """Learns from finished steps. Pure: it is told of times, it reads no clock."""

    max_tokens: int
    """Of a step; what runs where nothing decodes."""
    stretch: float
    """How many times longer than without prompts a step with them may take."""
    _means: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    """Rows and seconds of steps, by the number of rows in powers of two."""

    def num_prompt_tokens(self, num_decoding: int, num_prompts: int = 1) -> int:
        """Return how many prompt tokens may run in a step in which so many sequences decode.

        `num_prompts` sequences have prompts to run, or wait for it.
        """
        left = self.max_tokens - num_decoding
        if num_decoding == 0 or self.stretch <= 0:
            return left
        beside = self._rows_within(self.stretch * self._seconds_of(num_decoding)) - num_decoding
        share = (beside if self._means else _FIRST_TOKENS) * max(1.0, _EAGERNESS * (num_prompts - 1) / num_decoding)
        return max(0, min(left, max(_LEAST_TOKENS, round(share))))

    def learn(self, num_decoding: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step took: its slowest stage, since the others run other steps meanwhile."""
        rows = num_decoding + num_prompt_tokens
        if rows == 0 or seconds <= 0:
            return
        before_rows, before = self._means.get(rows.bit_length(), (rows, seconds))
        seconds = min(before * _MOST_SURPRISE, max(before / _MOST_SURPRISE, seconds))
        means = (before_rows + _NEWEST * (rows - before_rows), before + _NEWEST * (seconds - before))
        self._means[rows.bit_length()] = means

    def _curve(self) -> Iterator[tuple[float, float]]:
        """Yield rows and seconds, both ascending: more rows never take less than fewer did."""
        most = 0.0
        for rows, seconds in sorted(self._means.values()):
            most = max(most, seconds)
            yield rows, most

    def _seconds_of(self, num_rows: int) -> float:
        """Return what so many rows take: between two known times on a line, and beyond them as the nearest."""
        curve = tuple(self._curve())
        for (rows, seconds), (more_rows, more_seconds) in pairwise(curve):
            if rows <= num_rows < more_rows:
                return seconds + (more_seconds - seconds) * (num_rows - rows) / (more_rows - rows)
        if not curve:
            return 0.0
        return curve[0][1] if num_rows < curve[0][0] else curve[-1][1]

    def _rows_within(self, target_seconds: float) -> float:
        """Return the most rows that take no longer; beyond what is known a row takes what rows took in the mean."""
        curve = tuple(self._curve())
        if not curve or target_seconds >= curve[-1][1]:
            return curve[-1][0] * target_seconds / curve[-1][1] if curve else 0.0
        for (rows, seconds), (more_rows, more_seconds) in reversed(tuple(pairwise(curve))):
            if seconds <= target_seconds < more_seconds:
                return rows + (more_rows - rows) * (target_seconds - seconds) / (more_seconds - seconds)
        return 0.0
