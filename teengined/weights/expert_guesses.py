"""Experts that are read before their layer asks, into memory of their own, because its router says that it will.

    guess ──► read into a spare ──► the layer asks ──► a miss takes the spare's memory for its slot, read or being read
                                                  └──► what nobody asked for is cancelled; the spare is free again

The cache knows nothing of guesses: what it holds, gives up and counts as missed is what it would be without them, so
that a wrong guess costs no expert its place, and the policy's simulation stays the cache. What guesses cost is paid in
advance: the spares are slots that the cache lends for as long as guesses are made or tried.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from teengined.core.model import UnitSpec
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_reads import ExpertReads
from teengined.weights.slot_memory import SlotMemory

__all__ = ["ExpertGuesses", "GuessCounts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessCounts:
    """What became of guesses since the stage was opened."""

    num_guessed: int = 0
    """Experts whose reads began before they were asked for."""
    num_right: int = 0
    """Of these, asked for."""
    is_on: bool = False
    """Whether steps with guesses measured faster than those without."""


class ExpertGuesses:
    """Reads ahead into spares. One thread."""

    def __init__(self, reads: ExpertReads) -> None:
        """Have no spare yet."""
        self._reads = reads
        self._spares: list[SlotMemory] = []
        self._guessed: dict[ExpertKey, SlotMemory] = {}
        self._num_guessed = self._num_right = 0

    @property
    def num_spares(self) -> int:
        """Return how many experts may be read ahead."""
        return len(self._spares)

    @property
    def counts(self) -> GuessCounts:
        """Return the counts so far."""
        return GuessCounts(num_guessed=self._num_guessed, num_right=self._num_right)

    def lend(self, spares: Iterable[SlotMemory]) -> None:
        """Take slots to read into, instead of those lent before, which must be nobody's by now."""
        self.settle(())
        self._spares = list(spares)

    def begin(self, keys: Iterable[tuple[ExpertKey, UnitSpec]]) -> None:
        """Start to read as many as there are spares for, the first ones first, if nothing else is being read.

        Guesses that are still there were wrong.
        """
        self.settle(())
        if not self._reads.is_idle:
            return
        free = [spare for spare in self._spares if spare.is_settled]
        for spare, (key, unit) in zip(free, keys, strict=False):
            spare.tensors = None
            spare.landing = self._reads.begin(unit, spare.memory(unit.size_bytes), is_guess=True)
            self._guessed[key] = spare
            self._num_guessed += 1

    def take(self, key: ExpertKey, slot: SlotMemory) -> bool:
        """Give `slot`, which nothing is being read into, the memory with the expert, if it was guessed."""
        spare = self._guessed.pop(key, None)
        if spare is None:
            return False
        landing = spare.landing
        assert landing is not None, "a guess is read"
        self._num_right += 1
        if not self._reads.keep(landing):
            return False  # It failed, and is read again for who needs it, who is told if that fails too.
        slot.buffer, spare.buffer = spare.buffer, slot.buffer
        slot.landing, spare.landing = landing, slot.landing
        return True

    def settle(self, wanted: Iterable[ExpertKey]) -> None:
        """Let go of what was guessed but is not `wanted`."""
        for key in set(self._guessed).difference(wanted):
            landing = self._guessed.pop(key).landing
            assert landing is not None, "a guess is read"
            self._reads.cancel(landing)
