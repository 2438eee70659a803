"""Which expert gives way when another needs its slot: least recently used, least frequently used, hot ones pinned.

Frequencies fade: an access counts half after `half_life` requests. They are kept for keys that are not held too, so
that one that comes back is known.
"""

import heapq
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping

from teengined.weights.eviction_policy import EvictionPolicy, ExpertKey
from teengined.weights.expert_frequencies import Frequencies, ScoreHeap
from teengined.weights.sticky_policy import StickyPolicy

__all__ = ["POLICIES", "LfuPolicy", "LruPolicy", "PinnedPolicy"]

# Of the slots, the part that is not given to hot experts, and the least of it.
_LRU_SHARE, _LEAST_LRU_SLOTS = 8, 2


class LruPolicy(EvictionPolicy):
    """The key gives way that was not asked for the longest."""

    name = "lru"

    def __init__(self, capacity: int, *, half_life: float) -> None:
        super().__init__(capacity, half_life=half_life)
        self._held: OrderedDict[ExpertKey, None] = OrderedDict()

    def touch(self, key: ExpertKey) -> None:
        """Make it the most recent."""
        if key in self._held:
            self._held.move_to_end(key)

    def add(self, key: ExpertKey) -> None:
        """Hold it as the most recent."""
        self._held[key] = None

    def remove(self, key: ExpertKey) -> None:
        """Forget it."""
        del self._held[key]

    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the oldest."""
        return next((key for key in self._held if key not in protected), None)

    def holding(self, held: Iterable[ExpertKey]) -> "LruPolicy":
        """Take the order of what is known; the rest counts as older."""
        other = LruPolicy(self.capacity, half_life=self.half_life)
        keys = set(held)
        other._held.update(dict.fromkeys(key for key in keys if key not in self._held))
        other._held.update(dict.fromkeys(key for key in self._held if key in keys))
        return other


class LfuPolicy(EvictionPolicy):
    """The key gives way that was asked for least often of late; of equals the one asked for longest ago."""

    name = "lfu"

    def __init__(self, capacity: int, *, half_life: float) -> None:
        super().__init__(capacity, half_life=half_life)
        self._frequencies = Frequencies(half_life)
        self._held = ScoreHeap(capacity)

    def next_request(self) -> None:
        """Let frequencies fade."""
        if self._frequencies.next_request():
            self._held.rescale(self._frequencies.scores)

    def touch(self, key: ExpertKey) -> None:
        """Count it."""
        self._frequencies.count(key)
        if key in self._held:
            self._held.enter(key, self._frequencies.of(key))

    def add(self, key: ExpertKey) -> None:
        """Hold it with the frequency that is known of it."""
        self._held.enter(key, self._frequencies.of(key))

    def remove(self, key: ExpertKey) -> None:
        """Forget that it is held, not how often it was asked for."""
        self._held.discard(key)

    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the least frequent."""
        found = self._held.least(protected)
        return None if found is None else found[1]

    def holding(self, held: Iterable[ExpertKey]) -> "LfuPolicy":
        """Keep the frequencies."""
        other = LfuPolicy(self.capacity, half_life=self.half_life)
        other._frequencies = self._frequencies.copy()
        for key in held:
            other.add(key)
        return other


class PinnedPolicy(EvictionPolicy):
    """The hottest keys stay, as many as nearly fill the slots; the others pass through a small part, oldest out first.

    Which are hot is looked up anew after as many accesses as there are slots.
    """

    name = "pinned"

    def __init__(self, capacity: int, *, half_life: float) -> None:
        super().__init__(capacity, half_life=half_life)
        self._frequencies = Frequencies(half_life)
        self._num_hot = max(0, capacity - max(_LEAST_LRU_SLOTS, capacity // _LRU_SHARE))
        self._hot: frozenset[ExpertKey] = frozenset()
        self._held_hot: set[ExpertKey] = set()
        self._held_cold: OrderedDict[ExpertKey, None] = OrderedDict()
        self._num_touched = 0

    def next_request(self) -> None:
        """Let frequencies fade, and look from time to time which keys are hot."""
        self._frequencies.next_request()
        if self._num_touched >= self.capacity:
            self._num_touched = 0
            scores = self._frequencies.scores
            self._sort_out(heapq.nlargest(self._num_hot, scores, key=lambda key: scores[key]))

    def touch(self, key: ExpertKey) -> None:
        """Count it."""
        self._num_touched += 1
        self._frequencies.count(key)
        if key in self._held_cold:
            self._held_cold.move_to_end(key)

    def add(self, key: ExpertKey) -> None:
        """Hold it among the hot ones or the others."""
        if key in self._hot:
            self._held_hot.add(key)
        else:
            self._held_cold[key] = None

    def remove(self, key: ExpertKey) -> None:
        """Forget that it is held, not how often it was asked for."""
        if key in self._held_cold:
            del self._held_cold[key]
        else:
            self._held_hot.remove(key)

    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the oldest of those that are not hot; a hot one only where there is no other."""
        cold = next((key for key in self._held_cold if key not in protected), None)
        if cold is not None:
            return cold
        scores: Mapping[ExpertKey, float] = self._frequencies.scores
        hot = (key for key in self._held_hot if key not in protected)
        return min(hot, key=lambda key: (scores.get(key, 0.0), key), default=None)

    def holding(self, held: Iterable[ExpertKey]) -> "PinnedPolicy":
        """Keep the frequencies and which keys are hot."""
        other = PinnedPolicy(self.capacity, half_life=self.half_life)
        other._frequencies, other._hot = self._frequencies.copy(), self._hot
        for key in held:
            other.add(key)
        return other

    def _sort_out(self, hottest: Iterable[ExpertKey]) -> None:
        self._hot = frozenset(hottest)
        held = [*self._held_hot, *self._held_cold]
        self._held_hot = {key for key in held if key in self._hot}
        self._held_cold = OrderedDict.fromkeys(key for key in held if key not in self._hot)


POLICIES: Mapping[str, type[EvictionPolicy]] = {
    policy.name: policy for policy in (LfuPolicy, LruPolicy, PinnedPolicy, StickyPolicy)
}
