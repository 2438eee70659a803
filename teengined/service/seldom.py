"""Lines of a log that anyone could cause by the thousand: told at once, then only counted for a while."""

import logging
import time
from collections.abc import Callable

__all__ = ["Seldom"]

_SECONDS = 10.0


class Seldom:
    """Tells the first of a kind, and after a while how many there were since."""

    def __init__(
        self, logger: logging.Logger, level: int, seconds: float = _SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write to `logger`, at most once in `seconds` for each kind."""
        self._logger, self._level = logger, level
        self._seconds, self._clock = seconds, clock
        self._told_seconds: dict[str, float] = {}
        self._num_untold: dict[str, int] = {}

    def tell(self, kind: str, detail: str = "") -> None:
        """Write `kind: detail`, or count it. Kinds are few: callers write them."""
        now_seconds = self._clock()
        if now_seconds - self._told_seconds.get(kind, float("-inf")) < self._seconds:
            self._num_untold[kind] = self._num_untold.get(kind, 0) + 1
            return
        self._told_seconds[kind] = now_seconds
        untold = self._num_untold.pop(kind, 0)
        more = f" (and {untold} more like it before)" if untold else ""
        self._logger.log(self._level, "%s%s%s", kind, f": {detail}" if detail else "", more)
