"""How often experts were asked for of late, and which of those that are held was asked for least. Pure."""

import heapq
from collections.abc import Container, Mapping

from teengined.weights.eviction_policy import ExpertKey

__all__ = ["Frequencies", "ScoreHeap"]

# Scores grow with time instead of fading; beyond this all are scaled down together.
_LARGEST_WEIGHT = 1e100
# A heap with so many outdated entries for each held key is built anew.
_HEAP_SLACK = 4


class Frequencies:
    """Counts accesses. Later ones weigh more, which is as if earlier ones faded."""

    def __init__(self, half_life: float) -> None:
        """Let an access count half after `half_life` requests."""
        self.growth = 2.0 ** (1.0 / half_life)
        """By which accesses of the next request weigh more."""
        self.weight = 1.0
        """Of an access now."""
        self.scores: dict[ExpertKey, float] = {}

    def next_request(self) -> bool:
        """Let time pass; True where every score was scaled."""
        self.weight *= self.growth
        if self.weight < _LARGEST_WEIGHT:
            return False
        self.scores = {key: score / self.weight for key, score in self.scores.items()}
        self.weight = 1.0
        return True

    def count(self, key: ExpertKey) -> None:
        """Count an access."""
        self.scores[key] = self.scores.get(key, 0.0) + self.weight

    def of(self, key: ExpertKey) -> float:
        """Return a key's score."""
        return self.scores.get(key, 0.0)

    def copy(self) -> "Frequencies":
        """Return the same counts, to go on with apart."""
        other = Frequencies(1.0)
        other.growth, other.weight, other.scores = self.growth, self.weight, dict(self.scores)
        return other


class ScoreHeap:
    """Held keys by score, the least first; of equals the one that entered first."""

    def __init__(self, capacity: int) -> None:
        """Hold at most about `capacity` keys."""
        self._most_entries = _HEAP_SLACK * (capacity + 1)
        self._held: dict[ExpertKey, tuple[float, int]] = {}
        """Key -> its valid entry in the heap."""
        self._heap: list[tuple[float, int, ExpertKey]] = []
        self._num_entries = 0

    def __contains__(self, key: object) -> bool:
        """Say whether a key is held."""
        return key in self._held

    def enter(self, key: ExpertKey, score: float) -> None:
        """Hold a key, or change its score."""
        self._num_entries += 1
        self._held[key] = (score, self._num_entries)
        heapq.heappush(self._heap, (score, self._num_entries, key))
        if len(self._heap) > self._most_entries:
            self._rebuild()

    def discard(self, key: ExpertKey) -> None:
        """Hold a key no more, which is held."""
        del self._held[key]

    def least(self, protected: Container[ExpertKey]) -> tuple[float, ExpertKey] | None:
        """Return the least score and its key, none of `protected`; None where there is no other."""
        passed: list[tuple[float, int, ExpertKey]] = []
        found: tuple[float, ExpertKey] | None = None
        while self._heap and found is None:
            score, entry, key = self._heap[0]
            if self._held.get(key) != (score, entry):
                heapq.heappop(self._heap)
            elif key in protected:
                passed.append(heapq.heappop(self._heap))
            else:
                found = (score, key)
        for each in passed:
            heapq.heappush(self._heap, each)
        return found

    def rescale(self, scores: Mapping[ExpertKey, float]) -> None:
        """Take new scores of all keys, which keep their order."""
        self._held = {key: (scores.get(key, 0.0), entry) for key, (_, entry) in self._held.items()}
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(score, entry, key) for key, (score, entry) in self._held.items()]
        heapq.heapify(self._heap)
