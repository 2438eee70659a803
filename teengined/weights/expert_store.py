"""Routed experts that come when they are asked for: cached where possible, else read while others compute.

    a layer asks ──► decide slots ──► start reads, as many as there are slots for ──► hand out one by one, in a fixed
                     (who stays, who gives way: pure)          ▲                      order; each computes at once
                                                               └── a computed expert's slot takes the next ──┘

Nothing about the order depends on how fast reads arrive, so neither do bytes moved nor results.
"""

from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass

from teengined.core.errors import InternalError
from teengined.core.model import UnitSpec
from teengined.core.plan import ExpertCache, StageExperts
from teengined.interfaces.driver import Device
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_bank import ExpertBank
from teengined.weights.expert_fill import STAGING_SLOTS, DirectFill, Fill, StagedFill
from teengined.weights.expert_guesses import ExpertGuesses, GuessCounts
from teengined.weights.expert_reads import ExpertReads
from teengined.weights.expert_slots import Visit
from teengined.weights.guess_trial import GuessTrial
from teengined.weights.options import StreamOptions
from teengined.weights.policy_choice import CacheReport
from teengined.weights.unit_views import UnitTensors

__all__ = ["ExpertStore"]

# Rows of a step up to which experts are guessed: with more of them a layer asks for nearly all.
_MOST_GUESSING_ROWS = 16
# Of the slots that experts are read into, the largest part that is lent to guesses.
_LENT_PART = 16


@dataclass(frozen=True, slots=True)
class _Part:
    """Experts of one size: their slots, and how these are filled."""

    bank: ExpertBank
    fill: Fill
    guesses: ExpertGuesses
    num_lent: int
    """Slots that are lent to the guesses, while there are any."""


@dataclass(eq=False, slots=True)
class _Turn:
    """A visit on its way."""

    visit: Visit
    part: _Part
    unit: UnitSpec
    is_started: bool = False
    is_finished: bool = False


class ExpertStore:
    """Owns the slots of a stage. `fetch` is for one thread."""

    def __init__(
        self,
        units: Mapping[ExpertKey, UnitSpec],
        plan: StageExperts,
        device: Device,
        reads: ExpertReads,
        options: StreamOptions,
    ) -> None:
        """Allocate the slots of `plan` for `units`.

        Raises:
            OutOfDeviceMemory: the budget has no room for them.
        """
        self._units = units
        self._device = device
        self._reads = reads
        self._parts: list[_Part] = []
        self._options = options
        num_layers = len({layer for layer, _ in units})
        try:
            for cache in plan.caches:
                bank = ExpertBank(cache, device, policy=options.expert_policy, num_layers=num_layers)
                self._parts.append(self._part(cache, bank))
        except BaseException:
            self.free()
            raise
        self.latest: ExpertKey | None = None
        """The expert that was waited for last; where a fetch fails, the one that could not be had."""
        self._trial = GuessTrial(is_wanted=any(part.num_lent for part in self._parts))
        self._has_lent = False
        self._part_of_size = {size: self._smallest_for(size) for size in {unit.size_bytes for unit in units.values()}}

    def fetch(self, layer: int, experts: Sequence[int], *, in_order: bool) -> Generator[tuple[int, UnitTensors]]:
        """Yield each expert with its tensors, which are valid until the next is asked for. Close what is not run out.

        Args:
            layer: The layer that asks.
            experts: Different ones, ascending.
            in_order: Yield them in that order. Else those that are cached come first, while the others are read.

        Raises:
            PackageError, PackageCorrupt: an expert could not be read, or is not what it was; the message names it.
            DeadlineExceeded: one did not arrive in time.
        """
        turns = self._decide(layer, experts, in_order=in_order)
        waiting = deque(turn for turn in turns if turn.visit.is_miss)
        self._settle_guesses({turn.visit.key for turn in waiting})
        finished: set[Visit] = set()
        try:
            for turn in turns:
                self.latest = turn.visit.key
                self._start(waiting, finished, needed=turn)
                turn.part.fill.finish(turn.visit, turn.unit)
                turn.is_finished = True
                slot = turn.part.bank.memory(turn.visit)
                assert slot.tensors is not None, "a fill leaves the expert's tensors in its slot"
                yield turn.visit.key[1], slot.tensors
                if not self._device.shares_host_memory:
                    slot.computed = self._device.record_compute()
                finished.add(turn.visit)
        finally:
            self._abandon(turns)
            self._settle_guesses(())

    def is_guessing(self, num_rows: int) -> bool:
        """Say whether a guess is wanted of what a layer will ask for in a step of so many rows."""
        return self._trial.is_guessing and num_rows <= _MOST_GUESSING_ROWS

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that the layer will probably ask for, the most probable first, while the disk idles."""
        for part in self._parts:
            wanted = ((layer, expert) for expert in experts)
            mine = (key for key in wanted if self._part_of_size[self._units[key].size_bytes] is part)
            part.guesses.begin((key, self._units[key]) for key in mine if part.fill.needs_read(key))

    def learn_step(self, num_rows: int, seconds: float) -> None:
        """Take in how long a step took, and decide whether guesses are made in the next one."""
        if num_rows > _MOST_GUESSING_ROWS:
            return
        self._trial.learn(num_rows, seconds)
        if self._trial.needs_room != self._has_lent:
            self._has_lent = self._trial.needs_room
            for part in self._parts:
                part.fill.lend(part.num_lent if self._has_lent else 0)

    @property
    def guesses(self) -> GuessCounts:
        """Return what became of guesses."""
        counts = [part.guesses.counts for part in self._parts]
        return GuessCounts(
            num_guessed=sum(count.num_guessed for count in counts),
            num_right=sum(count.num_right for count in counts),
            is_on=self._trial.is_on,
        )

    @property
    def reports(self) -> tuple[CacheReport, ...]:
        """Return how each cache does, the largest experts' first."""
        return tuple(part.bank.report for part in self._parts)

    def free(self) -> None:
        """Give the memory back, after the reads have ended. Safe to call twice."""
        parts, self._parts = self._parts, []
        for part in parts:
            part.fill.free()
            part.bank.free()

    def _part(self, cache: ExpertCache, bank: ExpertBank) -> _Part:
        guesses = ExpertGuesses(self._reads)
        fill: Fill
        num_slots = cache.num_slots
        try:
            if self._device.shares_host_memory:
                fill = DirectFill(bank, self._reads, guesses)
            else:
                num_slots = max(cache.num_host_slots, min(STAGING_SLOTS, cache.num_experts))
                fill = StagedFill(bank, self._reads, guesses, self._device, num_slots=num_slots)
        except BaseException:
            bank.free()
            raise
        return _Part(bank, fill, guesses, min(self._options.expert_guesses, num_slots // _LENT_PART))

    def _settle_guesses(self, wanted: Collection[ExpertKey]) -> None:
        for part in self._parts:
            part.guesses.settle(wanted)

    def _smallest_for(self, size_bytes: int) -> _Part:
        fitting = [part for part in self._parts if part.bank.slot_bytes >= size_bytes]
        if not fitting:
            raise InternalError(
                f"the plan has no slot for an expert of {size_bytes} bytes", hint="load the model again"
            )
        return min(fitting, key=lambda part: part.bank.slot_bytes)

    def _decide(self, layer: int, experts: Sequence[int], *, in_order: bool) -> list[_Turn]:
        """Return the turns in order of computation; experts of several sizes are decided size by size."""
        keys: dict[int, list[ExpertKey]] = {}
        for expert in experts:
            part = self._part_of_size[self._units[layer, expert].size_bytes]
            keys.setdefault(self._parts.index(part), []).append((layer, expert))
        turns = [
            _Turn(visit, self._parts[index], self._units[visit.key])
            for index, wanted in keys.items()
            for visit in self._parts[index].bank.visit(wanted, in_order=in_order)
        ]
        if len(keys) > 1:
            turns.sort(key=lambda turn: (not in_order and turn.visit.is_miss, turn.visit.key))
        return turns

    def _start(self, waiting: deque[_Turn], finished: set[Visit], *, needed: _Turn) -> None:
        """Begin what can be begun, in order; what is `needed` now is begun whatever it has to wait for."""
        while waiting:
            turn = waiting[0]
            if turn.visit.after is not None and turn.visit.after not in finished:
                return
            if not turn.part.fill.start(turn.visit, turn.unit, must=turn is needed):
                return
            turn.is_started = True
            waiting.popleft()

    def _abandon(self, turns: Sequence[_Turn]) -> None:
        """Forget what will not come: the request ends early, because a read failed or its asker did."""
        for turn in turns:
            if turn.is_finished:
                continue
            if (turn.visit.is_miss and not turn.is_started) or not turn.part.fill.abandon(turn.visit):
                turn.part.bank.drop(turn.visit)
