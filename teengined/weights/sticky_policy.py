"""An eviction policy for routers that go on with what they chose: the next token often asks for this token's experts.

A layer's next token asks for an expert with the probability of its frequency, and, if the latest token did so, with an
excess that is the same for all. The excess is learned; the key of least probability gives way.
Frequencies alone give up what was asked for just now, recency alone what comes back after a few tokens.
"""

from collections.abc import Container, Iterable

from teengined.weights.eviction_policy import EvictionPolicy, ExpertKey
from teengined.weights.expert_frequencies import Frequencies, ScoreHeap

__all__ = ["StickyPolicy"]

# Frequencies fade so many times as fast as those of other policies, which makes this the one that follows a new topic.
_FADING = 2
# Of what was learned of the excess, with each request: the last thousand or so count.
_KEPT = 0.999


class StickyPolicy(EvictionPolicy):
    """The key gives way that its layer's next token will least probably ask for."""

    name = "sticky"

    def __init__(self, capacity: int, *, half_life: float) -> None:
        super().__init__(capacity, half_life=half_life)
        self._frequencies = Frequencies(half_life / _FADING)
        self._latest = ScoreHeap(capacity)
        """Held keys that their layer's latest request asked for."""
        self._others = ScoreHeap(capacity)
        self._asked: dict[int, set[ExpertKey]] = {}
        """Layer -> what its latest request asked for."""
        self._layer: int | None = None
        """Whose request it is."""
        self._previous: set[ExpertKey] = set()
        """What the layer asked for before, and how many of these it would ask for again by their frequency alone."""
        self._num_expected = 0.0
        self._sum_excess = self._num_previous = 0.0

    def next_request(self) -> None:
        """Let frequencies fade, and learn from the request that is over."""
        self._end_request()
        if self._frequencies.next_request():
            for heap in (self._latest, self._others):
                heap.rescale(self._frequencies.scores)

    def touch(self, key: ExpertKey) -> None:
        """Count it, as one of its layer's latest."""
        if key[0] != self._layer:
            self._end_request()
            self._begin_request(key[0])
        self._frequencies.count(key)
        self._asked[key[0]].add(key)
        if key in self._others:
            self._others.discard(key)
            self._latest.enter(key, self._frequencies.of(key))
        elif key in self._latest:
            self._latest.enter(key, self._frequencies.of(key))

    def add(self, key: ExpertKey) -> None:
        """Hold it with what is known of it."""
        heap = self._latest if key in self._asked.get(key[0], ()) else self._others
        heap.enter(key, self._frequencies.of(key))

    def remove(self, key: ExpertKey) -> None:
        """Forget that it is held, not how often it was asked for."""
        (self._latest if key in self._latest else self._others).discard(key)

    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the least probable."""
        other, latest = self._others.least(protected), self._latest.least(protected)
        if other is None or latest is None:
            found = other or latest
            return None if found is None else found[1]
        excess = self._excess * self._score_of_certainty
        return other[1] if other[0] <= latest[0] + excess else latest[1]

    def holding(self, held: Iterable[ExpertKey]) -> "StickyPolicy":
        """Keep all that was learned."""
        other = StickyPolicy(self.capacity, half_life=self.half_life)
        other._frequencies = self._frequencies.copy()
        other._asked = {layer: set(keys) for layer, keys in self._asked.items()}
        other._layer, other._previous = self._layer, set(self._previous)
        other._num_expected = self._num_expected
        other._sum_excess, other._num_previous = self._sum_excess, self._num_previous
        for key in held:
            other.add(key)
        return other

    @property
    def _score_of_certainty(self) -> float:
        """Return the score of a key that every token asks for: a geometric series over its layer's requests."""
        per_token = self._frequencies.growth ** -len(self._asked)
        return self._frequencies.weight / (1 - per_token)

    @property
    def _excess(self) -> float:
        return max(0.0, self._sum_excess / self._num_previous) if self._num_previous else 0.0

    def _begin_request(self, layer: int) -> None:
        self._layer = layer
        self._previous = self._asked.get(layer, set())
        certainty = self._score_of_certainty if self._asked else 1.0
        self._num_expected = sum(min(1.0, self._frequencies.of(key) / certainty) for key in self._previous)
        self._asked[layer] = set()
        for key in self._previous:
            if key in self._latest:
                self._latest.discard(key)
                self._others.enter(key, self._frequencies.of(key))

    def _end_request(self) -> None:
        if self._layer is None:
            return
        num_again = len(self._previous & self._asked[self._layer])
        self._sum_excess = self._sum_excess * _KEPT + num_again - self._num_expected
        self._num_previous = self._num_previous * _KEPT + len(self._previous)
        self._layer, self._previous = None, set()
