"""Requests for experts as routers make them: some are liked, which ones drifts with the topic, and tokens go on alike.

Each layer in turn asks for a few of its experts. A draw follows Zipf's law in the layer's order of all text, or in the
topic's; and what the token before asked for is asked for again with some probability, before anything is drawn.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from teengined.weights.eviction_policy import ExpertKey

__all__ = ["RouterTraces", "best_online_misses", "repeating_text"]

Trace = list[list[ExpertKey]]
NUM_TOPICS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterTraces:
    """A model's routers. `requests` is the same for the same seed."""

    seed: int
    skew: float
    """Zipf's exponent; 0: uniform."""
    topic_tokens: int = 0
    """After which the topic changes; 0: never."""
    topic_share: float = 0.5
    """Of draws in the order of the topic."""
    repeated: float = 0.0
    num_layers: int = 8
    num_experts: int = 64
    num_asked: int = 4
    num_tokens: int = 600

    def requests(self) -> Trace:
        """Return what the layers ask for, one after another, token for token."""
        return [keys for _, keys in self.steps()]

    def steps(self) -> Iterator[tuple[int, list[ExpertKey]]]:
        """Yield (topic, experts that a layer asks for)."""
        rng, topic = random.Random(self.seed), 0
        orders = self.orders()
        weights = [1 / (rank + 1) ** self.skew for rank in range(self.num_experts)]
        latest: list[list[int]] = [[] for _ in range(self.num_layers)]
        for token in range(self.num_tokens):
            if self.topic_tokens and token % self.topic_tokens == 0:
                topic = rng.randrange(NUM_TOPICS)
            for layer in range(self.num_layers):
                asked = {expert for expert in latest[layer] if rng.random() < self.repeated}
                while len(asked) < self.num_asked:
                    is_topical = self.topic_tokens and rng.random() < self.topic_share
                    order = orders[topic if is_topical else NUM_TOPICS][layer]
                    asked.add(order[rng.choices(range(self.num_experts), weights)[0]])
                latest[layer] = sorted(asked)
                yield topic, [(layer, expert) for expert in latest[layer]]

    def orders(self) -> list[list[list[int]]]:
        """Return by topic and layer the experts, most liked first; the last are those of all text."""
        rng, experts = random.Random(self.seed + 1), range(self.num_experts)
        return [[rng.sample(experts, self.num_experts) for _ in range(self.num_layers)] for _ in range(NUM_TOPICS + 1)]

    def chances(self, topic: int, layer: int) -> list[float]:
        """Return the probability that a token asks for each expert by drawing.

        As if the number of draws were Poisson's, of the mean that brings as many different experts as are drawn.
        """
        shares = [0.0] * self.num_experts
        total = sum(1 / (rank + 1) ** self.skew for rank in range(self.num_experts))
        topical = self.topic_share if self.topic_tokens else 0.0
        for part, order in ((topical, self.orders()[topic]), (1 - topical, self.orders()[NUM_TOPICS])):
            for rank, expert in enumerate(order[layer]):
                shares[expert] += part / total / (rank + 1) ** self.skew
        low, high = 0.0, 1e4
        for _ in range(50):
            mean = (low + high) / 2
            is_less = sum(1 - math.exp(-share * mean) for share in shares) < self.num_asked * (1 - self.repeated)
            low, high = (mean, high) if is_less else (low, mean)
        return [1 - math.exp(-share * low) for share in shares]


def best_online_misses(traces: RouterTraces, capacity: int) -> int:
    """Return the misses of a cache that knows every probability, and keeps what the next token will most probably want.

    For requests that do not depend on each other nothing that does not see the future does better: Aho, Denning and
    Ullman, "Principles of Optimal Page Replacement", 1971 (the policy A0).
    """
    chances: dict[int, list[list[float]]] = {}
    latest: dict[int, set[ExpertKey]] = {}
    held: set[ExpertKey] = set()
    misses = 0

    def chance(key: ExpertKey) -> float:
        drawn = chances[topic][key[0]][key[1]]
        return traces.repeated + (1 - traces.repeated) * drawn if key in latest[key[0]] else drawn

    for topic, keys in traces.steps():
        if topic not in chances:
            chances[topic] = [traces.chances(topic, layer) for layer in range(traces.num_layers)]
        latest[keys[0][0]] = set(keys)
        misses += len(set(keys) - held)
        held.update(keys)
        while len(held) > capacity:
            held.remove(min(held - set(keys), key=chance))
    return misses


def repeating_text(num_tokens: int, period: int, *, num_layers: int = 8, num_asked: int = 4, seed: int = 1) -> Trace:
    """Return what layers of 64 experts ask for in a text that says the same again and again."""
    rng = random.Random(seed)
    text = [[sorted(rng.sample(range(64), num_asked)) for _ in range(num_layers)] for _ in range(period)]
    return [
        [(layer, expert) for expert in text[token % period][layer]]
        for token in range(num_tokens)
        for layer in range(num_layers)
    ]
