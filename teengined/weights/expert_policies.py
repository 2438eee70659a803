"""Which expert gives way when another needs its slot: least recently used, least frequently used, hot ones pinned.

Pure: no clock, no randomness. A policy is told of every access and of what is held; asked for a victim, it names the
held key that it would miss least. Frequencies fade: an access counts half after `half_life` requests. They are kept
for keys that are not held too, so that one that comes back is known.
"""

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from typing import ClassVar

__all__ = ["POLICIES", "EvictionPolicy", "ExpertKey", "LfuPolicy", "LruPolicy", "PinnedPolicy"]

ExpertKey = tuple[int, int]
"""(layer, expert)."""

# Scores grow with time instead of fading; beyond this all are scaled down together.
_LARGEST_WEIGHT = 1e100
# A heap with so many outdated entries for each held key is built anew.
_HEAP_SLACK = 4
# Of the slots, the part that is not given to hot experts, and the least of it.
_LRU_SHARE, _LEAST_LRU_SLOTS = 8, 2


class EvictionPolicy(ABC):
    """Knows what is held and what was asked for. One thread."""

    name: ClassVar[str]

    def __init__(self, capacity: int, *, half_life: float) -> None:
        """Hold nothing yet, and at most `capacity` keys ever; `half_life` is in requests."""
        self.capacity = capacity
        self.half_life = half_life

    @abstractmethod
    def touch(self, key: ExpertKey) -> None:
        """Note an access, whether the key is held or not."""

    @abstractmethod
    def add(self, key: ExpertKey) -> None:
        """Note that a key is held from now on; there is room for it."""

    @abstractmethod
    def remove(self, key: ExpertKey) -> None:
        """Note that a key is held no more."""

    @abstractmethod
    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the held key to give up, none of `protected`; None where only those are held."""

    @abstractmethod
    def holding(self, held: Iterable[ExpertKey]) -> "EvictionPolicy":
        """Return a policy that knows what this one knows, and holds other keys."""

    def next_request(self) -> None:
        """Let time pass: a layer asks for its experts. Nothing, where a policy knows no time."""
        return


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


class _Frequencies:
    """How often each key was asked for, of late. Later accesses weigh more, which is as if earlier ones faded."""

    def __init__(self, half_life: float) -> None:
        self._growth = 2.0 ** (1.0 / half_life)
        self._weight = 1.0
        self.scores: dict[ExpertKey, float] = {}

    def next_request(self) -> bool:
        """Let time pass; True where every score was scaled."""
        self._weight *= self._growth
        if self._weight < _LARGEST_WEIGHT:
            return False
        self.scores = {key: score / self._weight for key, score in self.scores.items()}
        self._weight = 1.0
        return True

    def count(self, key: ExpertKey) -> float:
        """Count an access and return the new score."""
        score = self.scores[key] = self.scores.get(key, 0.0) + self._weight
        return score

    def copy(self) -> "_Frequencies":
        other = _Frequencies(1.0)
        other._growth, other._weight, other.scores = self._growth, self._weight, dict(self.scores)
        return other


class LfuPolicy(EvictionPolicy):
    """The key gives way that was asked for least often of late; of equals the one asked for longest ago."""

    name = "lfu"

    def __init__(self, capacity: int, *, half_life: float) -> None:
        super().__init__(capacity, half_life=half_life)
        self._frequencies = _Frequencies(half_life)
        self._held: dict[ExpertKey, tuple[float, int]] = {}
        """Key -> its valid entry in the heap."""
        self._heap: list[tuple[float, int, ExpertKey]] = []
        self._num_entries = 0

    def next_request(self) -> None:
        """Let frequencies fade."""
        if self._frequencies.next_request():
            self._rebuild()

    def touch(self, key: ExpertKey) -> None:
        """Count it."""
        self._frequencies.count(key)
        if key in self._held:
            self._enter(key)

    def add(self, key: ExpertKey) -> None:
        """Hold it with the frequency that is known of it."""
        self._enter(key)

    def remove(self, key: ExpertKey) -> None:
        """Forget that it is held, not how often it was asked for."""
        del self._held[key]

    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the least frequent."""
        passed: list[tuple[float, int, ExpertKey]] = []
        found = None
        while self._heap and found is None:
            score, entry, key = self._heap[0]
            if self._held.get(key) != (score, entry):
                heapq.heappop(self._heap)
            elif key in protected:
                passed.append(heapq.heappop(self._heap))
            else:
                found = key
        for each in passed:
            heapq.heappush(self._heap, each)
        return found

    def holding(self, held: Iterable[ExpertKey]) -> "LfuPolicy":
        """Keep the frequencies."""
        other = LfuPolicy(self.capacity, half_life=self.half_life)
        other._frequencies = self._frequencies.copy()
        for key in held:
            other._enter(key)
        return other

    def _enter(self, key: ExpertKey) -> None:
        self._num_entries += 1
        score = self._frequencies.scores.get(key, 0.0)
        self._held[key] = (score, self._num_entries)
        heapq.heappush(self._heap, (score, self._num_entries, key))
        if len(self._heap) > _HEAP_SLACK * (self.capacity + 1):
            self._rebuild()

    def _rebuild(self) -> None:
        scores = self._frequencies.scores
        self._held = {key: (scores.get(key, 0.0), entry) for key, (_, entry) in self._held.items()}
        self._heap = [(score, entry, key) for key, (score, entry) in self._held.items()]
        heapq.heapify(self._heap)


class PinnedPolicy(EvictionPolicy):
    """The hottest keys stay, as many as nearly fill the slots; the others pass through a small part, oldest out first.

    Which are hot is looked up anew after as many accesses as there are slots.
    """

    name = "pinned"

    def __init__(self, capacity: int, *, half_life: float) -> None:
        super().__init__(capacity, half_life=half_life)
        self._frequencies = _Frequencies(half_life)
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


POLICIES: Mapping[str, type[EvictionPolicy]] = {policy.name: policy for policy in (LfuPolicy, LruPolicy, PinnedPolicy)}
