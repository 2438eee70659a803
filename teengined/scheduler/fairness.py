"""What each owner was served and has waiting: the counters behind fair shares and quotas.

A virtual token counter for each owner, as in fair queueing: it grows by each token that is run for the owner, and the
owner with the lowest one is owed the most. Who was idle begins again at the lowest counter of those who are not, so
that nobody saves up a claim to starve the others with (Sheng and others, "Fairness in Serving Large Language Models",
2024).
"""

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Owner", "Owners"]


@dataclass(slots=True)
class Owner:
    """One owner's counts."""

    served_tokens: float = 0.0
    num_sequences: int = 0
    """Neither ended nor refused."""
    num_waiting: int = 0
    num_waiting_tokens: int = 0


class Owners:
    """The owners with sequences, and a bounded number of those who had some."""

    def __init__(self, max_idle: int) -> None:
        """Of the owners without sequences, `max_idle` are remembered."""
        self._max_idle = max_idle
        self._active: dict[str, Owner] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()

    def __getitem__(self, name: str) -> Owner:
        """Return an owner's counts; new ones, not remembered, for one without sequences."""
        return self._active.get(name) or Owner()

    @property
    def num_active(self) -> int:
        """Owners with sequences."""
        return len(self._active)

    def enter(self, name: str) -> None:
        """Count a new sequence of an owner."""
        owner = self._active.get(name)
        if owner is None:
            least = min((other.served_tokens for other in self._active.values()), default=0.0)
            owner = self._active[name] = Owner(served_tokens=max(least, self._idle.pop(name, 0.0)))
        owner.num_sequences += 1

    def leave(self, name: str) -> None:
        """Count a sequence that ended. When the last one of all has, nobody is owed anything any more."""
        owner = self._active[name]
        owner.num_sequences -= 1
        if owner.num_sequences == 0:
            del self._active[name]
            self._idle[name] = owner.served_tokens
            if len(self._idle) > self._max_idle:
                self._idle.popitem(last=False)
        if not self._active:
            self._idle.clear()

    def charge(self, name: str, num_tokens: int) -> None:
        """Count tokens that are run for an owner with sequences."""
        self._active[name].served_tokens += num_tokens
