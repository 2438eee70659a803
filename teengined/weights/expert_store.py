"""Routed experts that come when they are asked for: cached where possible, else read while others compute.

    a layer asks ──► decide slots ──► start reads, as many as there are slots for ──► hand out one by one, in a fixed
                     (who stays, who gives way: pure)          ▲                      order; each computes at once
                                                               └── a computed expert's slot takes the next ──┘

Nothing about the order depends on how fast reads arrive, so neither do bytes moved nor results.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from teengined.core.errors import InternalError
from teengined.core.model import UnitSpec
from teengined.core.plan import ExpertCache, StageExperts
from teengined.interfaces.driver import Device
from teengined.weights.expert_bank import ExpertBank
from teengined.weights.expert_fill import STAGING_SLOTS, DirectFill, Fill, StagedFill
from teengined.weights.expert_policies import ExpertKey
from teengined.weights.expert_reads import ExpertReads
from teengined.weights.expert_slots import Visit
from teengined.weights.options import StreamOptions
from teengined.weights.policy_choice import CacheReport
from teengined.weights.unit_views import UnitTensors

__all__ = ["ExpertStore"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Experts of one size: their slots, and how these are filled."""

    bank: ExpertBank
    fill: Fill


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
        num_layers = len({layer for layer, _ in units})
        try:
            for cache in plan.caches:
                bank = ExpertBank(cache, device, policy=options.expert_policy, num_layers=num_layers)
                self._parts.append(_Part(bank, self._fill(cache, bank)))
        except BaseException:
            self.free()
            raise
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
        finished: set[Visit] = set()
        try:
            for turn in turns:
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

    def _fill(self, cache: ExpertCache, bank: ExpertBank) -> Fill:
        try:
            if self._device.shares_host_memory:
                return DirectFill(bank.all_memory, self._reads)
            num_slots = max(cache.num_host_slots, min(STAGING_SLOTS, cache.num_experts))
            return StagedFill(
                bank.all_memory, self._reads, self._device, num_slots=num_slots, slot_bytes=cache.slot_bytes
            )
        except BaseException:
            bank.free()
            raise

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
