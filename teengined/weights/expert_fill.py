"""How an expert gets into its slot: read straight into it, or read into host memory and copied from there.

In host memory lies a cache too, behind the device's: what the device gave up may still be there. At the least it has a
few slots, which then are no more than staging.
"""

from typing import Protocol

from teengined.core.errors import InternalError, TeengineError
from teengined.core.model import UnitSpec
from teengined.interfaces.driver import CopyEvent, Device
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_bank import ExpertBank
from teengined.weights.expert_guesses import ExpertGuesses
from teengined.weights.expert_policies import POLICIES
from teengined.weights.expert_reads import ExpertReads, Landing
from teengined.weights.expert_slots import ExpertSlots, Visit
from teengined.weights.slot_memory import carve
from teengined.weights.unit_views import unit_views

__all__ = ["STAGING_SLOTS", "DirectFill", "Fill", "StagedFill"]

STAGING_SLOTS = 4
"""At least so many experts are on their way to a device with memory of its own: one copied, the others being read."""

# In accesses: what the device misses is a fraction of all, and has no layers to count by.
_HOST_HALF_LIFE = 4096.0


class Fill(Protocol):
    """Fills slots. Starts come in the order of the visits; so do ends."""

    def start(self, visit: Visit, unit: UnitSpec, *, must: bool) -> bool:
        """Begin; False where it cannot begin yet, which it waits for where it `must`."""
        ...

    def finish(self, visit: Visit, unit: UnitSpec) -> None:
        """Make the expert of any visit ready for compute that is queued from now on. Raises as `ExpertReads.wait`."""
        ...

    def needs_read(self, key: ExpertKey) -> bool:
        """Say whether an expert would have to be read if it were asked for now."""
        ...

    def lend(self, num_slots: int) -> None:
        """Lend slots to the guesses; 0: take them back."""
        ...

    def abandon(self, visit: Visit) -> bool:
        """Let go of a cached or a started one that will not be finished; True where it will lie in its slot anyway."""
        ...

    def free(self) -> None:
        """Give memory back, after the reads have ended."""
        ...


class DirectFill:
    """Where host memory is device memory: the slot is read into, and is the weight."""

    def __init__(self, bank: ExpertBank, reads: ExpertReads, guesses: ExpertGuesses) -> None:
        self._bank = bank
        self._reads = reads
        self._guesses = guesses
        self._is_closed = False

    def start(self, visit: Visit, unit: UnitSpec, *, must: bool) -> bool:
        """Begin to read, once no earlier read writes to the slot any more."""
        if self._is_closed:
            raise InternalError(f"the weights were closed before {unit.id} was asked for")
        slot = self._bank.memory(visit)
        if slot.landing is not None and not slot.landing.is_done:
            if not must:
                return False
            self._reads.settle(slot.landing)
        slot.tensors = None
        if not self._guesses.take(visit.key, slot):
            slot.landing = self._reads.begin(unit, slot.memory(unit.size_bytes))
        return True

    def finish(self, visit: Visit, unit: UnitSpec) -> None:
        """Wait for the read."""
        slot = self._bank.memory(visit)
        assert slot.landing is not None, "an expert was waited for that nobody reads"
        self._reads.wait(slot.landing)
        if slot.tensors is None:
            slot.tensors = unit_views(slot.buffer, 0, unit)

    def needs_read(self, key: ExpertKey) -> bool:
        """Say whether it has no slot."""
        return key not in self._bank

    def lend(self, num_slots: int) -> None:
        """Lend slots of the cache."""
        if self._guesses.num_spares:
            self._guesses.lend(())
            self._bank.take_back()
        if num_slots:
            self._guesses.lend(self._bank.lend(num_slots))

    def abandon(self, visit: Visit) -> bool:
        """Keep what arrives, unless it failed."""
        landing = self._bank.memory(visit).landing
        return landing is None or landing.error is None

    def free(self) -> None:
        """Begin no more."""
        self._is_closed = True
        self._guesses.lend(())


class _Landed(CopyEvent):
    """Stands for the copy of an expert that is not wanted any more: over when its read is."""

    def __init__(self, reads: ExpertReads, landing: Landing | None) -> None:
        self._reads = reads
        self._landing = landing

    def wait(self) -> None:
        """Nothing on the device waits for it."""

    def synchronize(self) -> None:
        """Wait for the read."""
        if self._landing is not None:
            self._reads.settle(self._landing)


class StagedFill:
    """Where the device has memory of its own: a cache in host memory, and copies from it beside compute."""

    def __init__(
        self, bank: ExpertBank, reads: ExpertReads, guesses: ExpertGuesses, device: Device, *, num_slots: int
    ) -> None:
        """Allocate `num_slots` slots in host memory."""
        self._bank = bank
        self._reads = reads
        self._guesses = guesses
        self._device = device
        self._slots = ExpertSlots(POLICIES["lfu"](num_slots, half_life=_HOST_HALF_LIFE), num_slots)
        self._lent: list[int] = []
        self._arena = device.allocate_staging(num_slots * bank.slot_bytes)
        self._host = carve(self._arena, num_slots, bank.slot_bytes)
        self._in_use: dict[ExpertKey, CopyEvent | None] = {}
        """Slots not to be overwritten, oldest first, and the copy after which they may be; None: not copied yet."""

    def start(self, visit: Visit, unit: UnitSpec, *, must: bool) -> bool:
        """Find the expert in host memory, or begin to read it there."""
        turn = self._slots.access(visit.key, self._in_use)
        while turn is None:
            if not self._reclaim():
                return False
            turn = self._slots.access(visit.key, self._in_use)
        slot = self._host[turn.slot]
        if turn.is_miss and not self._guesses.take(visit.key, slot):
            slot.landing = self._reads.begin(unit, slot.memory(unit.size_bytes))
        self._in_use.pop(visit.key, None)
        self._in_use[visit.key] = None
        return True

    def finish(self, visit: Visit, unit: UnitSpec) -> None:
        """Wait for the read and queue the copy, which compute on the device waits for."""
        if not visit.is_miss:
            return  # Compute that was queued before it waited for the copy, and so does all that follows.
        target = self._bank.memory(visit)
        source = self._host[self._slots.slot_of(visit.key)]
        try:
            if source.landing is not None:
                self._reads.wait(source.landing)
            if target.computed is not None:
                target.computed.synchronize()
            event = self._device.copy(source.buffer[: unit.size_bytes], target.buffer[: unit.size_bytes])
        except TeengineError:
            del self._in_use[visit.key]
            self._slots.drop(visit.key)
            raise
        self._in_use[visit.key] = event
        event.wait()
        target.tensors = unit_views(target.buffer, 0, unit)

    def needs_read(self, key: ExpertKey) -> bool:
        """Say whether it is neither on the device nor in host memory."""
        return key not in self._bank and key not in self._slots

    def lend(self, num_slots: int) -> None:
        """Lend slots in host memory."""
        self._guesses.lend(())
        self._slots.take_back(self._lent)
        self._lent = self._slots.lend(num_slots, self._in_use)
        self._guesses.lend(self._host[slot] for slot in self._lent)

    def abandon(self, visit: Visit) -> bool:
        """Leave it to host memory: the device's slot was not written."""
        if not visit.is_miss:
            return True
        if self._in_use.get(visit.key, self) is None:
            landing = self._host[self._slots.slot_of(visit.key)].landing
            self._in_use[visit.key] = _Landed(self._reads, landing)
        return False

    def free(self) -> None:
        """Give the host's memory back."""
        self._guesses.lend(())
        self._host.clear()
        self._device.free(self._arena)

    def _reclaim(self) -> bool:
        """Wait for the oldest copy; False where the oldest is not yet to be copied."""
        key, event = next(iter(self._in_use.items()))
        if event is None:
            return False
        event.synchronize()
        del self._in_use[key]
        return True
