"""How long reads were under way: streamed bytes over this time is the rate that the disk gave."""

import threading
import time

__all__ = ["ReadClock"]


class ReadClock:
    """Runs while at least one read does. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_reading = 0
        self._since = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        """Note that a read begins."""
        with self._lock:
            self._advance()
            self._num_reading += 1

    def stop(self) -> None:
        """Note that a read is over."""
        with self._lock:
            self._advance()
            self._num_reading -= 1

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is being read now."""
        return self._num_reading == 0

    @property
    def seconds(self) -> float:
        """Return the time so far."""
        with self._lock:
            self._advance()
            return self._seconds

    def _advance(self) -> None:
        now = time.perf_counter()
        if self._num_reading:
            self._seconds += now - self._since
        self._since = now
