"""Which eviction policy suits the requests at hand: every candidate runs as a shadow, and the best one decides. Pure.

A shadow is the cache without its bytes: the same slots, fed with the same requests. Its misses are what the cache
would have read under that policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from teengined.weights.belady import BeladyBound
from teengined.weights.eviction_policy import EvictionPolicy, ExpertKey
from teengined.weights.expert_policies import POLICIES
from teengined.weights.expert_slots import ExpertSlots

__all__ = ["AUTOMATIC", "CacheReport", "PolicyChoice"]

AUTOMATIC = "auto"
_FIRST = "lfu"
# A policy must read so much less than the deciding one: what is won must be more than chance, or they would take turns.
_MARGIN = 0.05
# Accesses between two comparisons, at least; counts halve at each, so that old requests fade. Few, since a text that
# repeats itself can have a policy miss everything.
_LEAST_ACCESSES = 512
# Tokens after which an access counts half.
_HALF_LIFE_TOKENS = 64
# Requests that Belady's bound looks back: hundreds of tokens of a model of 60 layers.
_BOUND_WINDOW = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """How the cache does, and how it could."""

    policy: str
    """The one that decides now."""
    num_accesses: int
    """Experts asked for since the cache was opened."""
    num_hits: int
    num_best_hits: int
    """Of Belady's cache, on the same requests."""
    num_simulated_hits: int
    """Of the shadow of the policy that decided each time."""


class PolicyChoice:
    """Runs the shadows of one cache and names its policy."""

    def __init__(self, wanted: str, num_slots: int, num_layers: int) -> None:
        """Try every policy where `wanted` is `auto`, else only that one. `num_layers` ask for experts in each step."""
        half_life = float(_HALF_LIFE_TOKENS * max(1, num_layers))
        names = tuple(POLICIES) if wanted == AUTOMATIC else (wanted,)
        self._shadows = {name: ExpertSlots(POLICIES[name](num_slots, half_life=half_life), num_slots) for name in names}
        self._recent_misses = dict.fromkeys(names, 0.0)
        self._belady = BeladyBound(num_slots, window=_BOUND_WINDOW)
        self._period = max(_LEAST_ACCESSES, num_slots)
        self._num_since = 0
        self._lent: dict[str, list[int]] = {}
        self._num_hits = self._num_simulated_hits = 0
        self.name = names[0] if len(names) == 1 else _FIRST
        self.first_policy: EvictionPolicy = POLICIES[self.name](num_slots, half_life=half_life)

    @property
    def report(self) -> CacheReport:
        """Return the counts so far."""
        return CacheReport(
            policy=self.name,
            num_accesses=self._belady.num_accesses,
            num_hits=self._num_hits,
            num_best_hits=self._belady.num_hits,
            num_simulated_hits=self._num_simulated_hits,
        )

    def lend(self, num_slots: int) -> None:
        """Have the shadows do with so many slots less, as the cache does. The bound is still that of all."""
        self._lent = {name: shadow.lend(num_slots) for name, shadow in self._shadows.items()}

    def take_back(self) -> None:
        """Give the shadows their slots back."""
        for name, slots in self._lent.items():
            self._shadows[name].take_back(slots)
        self._lent = {}

    def note(self, keys: Sequence[ExpertKey], num_hits: int, *, in_order: bool) -> EvictionPolicy | None:
        """Take a request and what the cache hit of it; return the policy that should decide from now on, if another."""
        self._num_hits += num_hits
        self._num_since += len(keys)
        self._belady.note(keys)
        for name, shadow in self._shadows.items():
            misses = sum(visit.is_miss for visit in shadow.visit(keys, in_order=in_order))
            self._recent_misses[name] += misses
            if name == self.name:
                self._num_simulated_hits += len(keys) - misses
        if self._num_since < self._period:
            return None
        self._num_since = 0
        return self._compare()

    def _compare(self) -> EvictionPolicy | None:
        misses = self._recent_misses
        best = min(misses, key=lambda name: misses[name])
        is_better = misses[best] < (1 - _MARGIN) * misses[self.name]
        self._recent_misses = {name: count / 2 for name, count in misses.items()}
        if not is_better:
            return None
        self.name = best
        return self._shadows[best].policy
