"""A point in time that a wait may not pass."""

import math
import time

__all__ = ["Deadline"]


class Deadline:
    """Counts down from the moment it is made."""

    def __init__(self, timeout_seconds: float) -> None:
        """Begin."""
        self.timeout_seconds = timeout_seconds
        self._end = time.monotonic() + timeout_seconds

    def left_seconds(self) -> float:
        """Return what is left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    def left_milliseconds(self) -> int:
        """Return what is left for `poll`, rounded up, so that a wait never ends before its time."""
        return math.ceil(self.left_seconds() * 1000)
