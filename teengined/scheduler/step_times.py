"""How long a step takes by its number of rows, as measured: what one more row costs a deployment.

Rows that share streamed weights cost next to nothing; on a CPU with everything resident each costs. Pure: it is told of
times, it reads no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["StepTimes"]

# The newest step's weight, once there are some; and by how much one odd step may move what is known.
_NEWEST = 0.1
_MOST_CHANGE = 2.0
_NUM_FIRST = 4
# Beyond the largest step that was measured nothing is said but this far: more is found out step by step.
_MOST_REACH = 2.5


@dataclass(slots=True)
class _Mean:
    """Of the steps with about so many rows."""

    num_rows: float
    seconds: float
    num_steps: int = 1

    def add(self, num_rows: int, seconds: float) -> None:
        self.num_steps += 1
        if self.num_steps > _NUM_FIRST:  # The first may hold what is only done once.
            seconds = min(self.seconds * _MOST_CHANGE, max(self.seconds / _MOST_CHANGE, seconds))
        weight = max(_NEWEST, 1 / self.num_steps)
        self.num_rows += weight * (num_rows - self.num_rows)
        self.seconds += weight * (seconds - self.seconds)


@dataclass(slots=True)
class StepTimes:
    """Running means by number of rows, in powers of two, with straight lines between them."""

    _means: dict[int, _Mean] = field(default_factory=dict[int, _Mean])

    def learn(self, num_rows: int, seconds: float) -> None:
        """Take in a step in which nothing ran but decoding sequences and their guesses."""
        if num_rows < 1 or seconds <= 0:
            return
        bucket = (num_rows - 1).bit_length()
        if (mean := self._means.get(bucket)) is None:
            self._means[bucket] = _Mean(num_rows, seconds)
        else:
            mean.add(num_rows, seconds)

    def seconds(self, num_rows: int) -> float | None:
        """Return the time of a step of so many rows; None where it is too far from all that was measured.

        More rows never take less time: where they seem to, the noise of few steps speaks.
        """
        points = self._points()
        if not points or num_rows > _MOST_REACH * points[-1][0]:
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
        points: list[tuple[float, float]] = []
        least = 0.0
        for bucket in sorted(self._means):
            mean = self._means[bucket]
            least = max(least, mean.seconds)
            points.append((mean.num_rows, least))
        return points


def _on_line(left: tuple[float, float], right: tuple[float, float], num_rows: int) -> float:
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return left[1] + slope * (num_rows - left[0])
