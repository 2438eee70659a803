"""Counts of observations by size."""

from bisect import bisect_left
from dataclasses import dataclass, field

from teengined.protocol.metric_messages import Distribution

__all__ = ["ANSWER_SECONDS", "FIRST_TOKEN_SECONDS", "QUEUE_SECONDS", "SHARED_ROWS", "TOKEN_SECONDS", "Histogram"]

# Edges that boards and rules of other engines rest on, with finer ones below for small models, 2 s between, and long
# ones above for models streamed from disk.
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
ANSWER_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
QUEUE_SECONDS = (0.001, 0.01, 0.1, *ANSWER_SECONDS)
SHARED_ROWS = tuple(float(1 << power) for power in range(14))


@dataclass(slots=True)
class Histogram:
    """Grows by observations only."""

    bounds: tuple[float, ...]
    total: float = 0.0
    _counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing, one bucket more than there are bounds."""
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound is not below it."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def distribution(self) -> Distribution:
        """The counts as they go over the wire."""
        return Distribution(bounds=self.bounds, counts=tuple(self._counts), total=self.total)
