"""What the best of all caches would have hit on the requests that were seen: Belady's bound. Pure.

Whoever knows the future keeps a key between two requests for it, or does not; a cache of C slots keeps at most C at a
time. Counting the most such intervals that C slots can hold is scheduling intervals on C machines, where taking each,
in the order in which they end, if it still fits, is optimal (Faigle and Nawijn, "Note on scheduling intervals on-line",
Discrete Applied Mathematics 1995). So the bound is known at every moment, without looking at a trace twice.
"""

from collections.abc import Iterable

import numpy as np

from teengined.weights.eviction_policy import ExpertKey

__all__ = ["BeladyBound"]


class BeladyBound:
    """Counts hits of the optimal cache. A key that comes back after more than `window` requests counts as missed."""

    def __init__(self, capacity: int, *, window: int) -> None:
        """Look back at most `window` requests, which bounds memory and time."""
        self._capacity = capacity
        self._window = window
        # Keys kept between request i and the next, for the last requests; compacted when its end is reached.
        self._kept_r = np.zeros(2 * window, dtype=np.int32)
        self._now = 0
        self._last: dict[ExpertKey, int] = {}
        self.num_accesses = 0
        self.num_hits = 0

    def note(self, keys: Iterable[ExpertKey]) -> None:
        """Take one request, whose keys are all different."""
        kept_r, last, now = self._kept_r, self._last, self._now
        for key in keys:
            self.num_accesses += 1
            before = last.get(key, -1)
            last[key] = now
            if before < 0:
                continue
            between = kept_r[before:now]
            if between.max() < self._capacity:
                between += 1
                self.num_hits += 1
        self._now += 1
        if self._now == len(kept_r):
            self._compact()

    def _compact(self) -> None:
        shift = len(self._kept_r) - self._window
        self._kept_r[: self._window] = self._kept_r[shift:]
        self._kept_r[self._window :] = 0
        self._now -= shift
        self._last = {key: at - shift for key, at in self._last.items() if at >= shift}
