"""How long a step takes by its number of rows, as measured: what one more row costs a deployment.

Rows that share streamed weights cost next to nothing; on a CPU with everything resident each costs. Pure: it is told of
times, it reads no clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["StepTimes"]

# The newest step's weight, once there are some.
_NEWEST = 0.1
# So many times longer or shorter than usual is odd. One odd step is passed over; several in a row are how it is now.
_ODD = 2.0
_NUM_ODD = 3
# Beyond the smallest and the largest steps that were measured nothing is said but this far.
_LEAST_REACH, _MOST_REACH = 0.6, 2.5


@dataclass(slots=True)
class _Mean:
    """Of the steps with about so many rows."""

    num_rows: float
    seconds: float
    newest: int = 0
    """Number of the last of these steps among all."""
    num_steps: int = 0
    num_odd: int = 0

    def add(self, num_rows: int, seconds: float) -> None:
        if self.num_steps > 1 and not self.seconds / _ODD <= seconds <= self.seconds * _ODD:
            self.num_odd += 1
            if self.num_odd < _NUM_ODD:
                return
            self.num_steps = 0
        self.num_odd = 0
        self.num_steps += 1
        weight = max(_NEWEST, 1 / self.num_steps)
        self.num_rows += weight * (num_rows - self.num_rows)
        self.seconds += weight * (seconds - self.seconds)


@dataclass(slots=True)
class StepTimes:
    """Running means by number of rows, in powers of two, with straight lines between them."""

    _means: dict[int, _Mean] = field(default_factory=dict[int, _Mean])
    _num_steps: int = 0

    def learn(self, num_rows: int, seconds: float) -> None:
        """Take in a step in which nothing ran but decoding sequences and their guesses."""
        if num_rows < 1 or seconds <= 0:
            return
        mean = self._means.setdefault((num_rows - 1).bit_length(), _Mean(num_rows, seconds))
        mean.add(num_rows, seconds)
        self._num_steps += 1
        mean.newest = self._num_steps

    def seconds(self, num_rows: int) -> float | None:
        """Return the time of a step of so many rows; None where it is too far from all that was measured."""
        points = self._points()
        if not points or not _LEAST_REACH * points[0][0] <= num_rows <= _MOST_REACH * points[-1][0]:
            return None
        if num_rows <= points[0][0]:
            return points[0][1]
        if len(points) == 1:
            return None
        for left, right in pairwise(points):
            if num_rows <= right[0]:
                return _on_line(left, right, num_rows)
        return _on_line(points[-2], points[-1], num_rows)

    def _points(self) -> Sequence[tuple[float, float]]:
        """Return rows and seconds. More rows never take less time: where they seem to, the newer measurement counts."""
        seconds: dict[int, float] = {}
        for bucket, mean in sorted(self._means.items(), key=lambda item: -item[1].newest):
            least = max((known for other, known in seconds.items() if other < bucket), default=0.0)
            most = min((known for other, known in seconds.items() if other > bucket), default=math.inf)
            seconds[bucket] = min(most, max(least, mean.seconds))
        return [(self._means[bucket].num_rows, seconds[bucket]) for bucket in sorted(seconds)]


def _on_line(left: tuple[float, float], right: tuple[float, float], num_rows: int) -> float:
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return left[1] + slope * (num_rows - left[0])
