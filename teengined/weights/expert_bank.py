"""The memory of one expert cache: equal slots side by side in one buffer, and the decision who lies in which."""

from collections.abc import Sequence

import torch

from teengined.core.plan import ExpertCache
from teengined.interfaces.driver import Device
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_slots import ExpertSlots, Visit
from teengined.weights.policy_choice import CacheReport, PolicyChoice
from teengined.weights.slot_memory import SlotMemory, carve

__all__ = ["ExpertBank"]


class ExpertBank:
    """Slots on the device for experts of one size. One thread."""

    def __init__(self, plan: ExpertCache, device: Device, *, policy: str, num_layers: int) -> None:
        """Allocate the slots.

        Raises:
            OutOfDeviceMemory: the budget has no room for them.
        """
        self.slot_bytes = plan.slot_bytes
        self._device = device
        self._choice = PolicyChoice(policy, plan.num_slots, num_layers)
        self._slots = ExpertSlots(self._choice.first_policy, plan.num_slots)
        self._lent: list[int] = []
        allocate = device.allocate_staging if device.shares_host_memory else device.allocate
        self._arena: torch.Tensor | None = allocate(plan.num_slots * plan.slot_bytes)
        self.all_memory = carve(self._arena, plan.num_slots, plan.slot_bytes)

    def visit(self, keys: Sequence[ExpertKey], *, in_order: bool) -> list[Visit]:
        """Decide a request, as `ExpertSlots.visit`."""
        visits = self._slots.visit(keys, in_order=in_order)
        num_hits = sum(not visit.is_miss for visit in visits)
        better = self._choice.note(keys, num_hits, in_order=in_order)
        if better is not None:
            self._slots.adopt(better)
        return visits

    def memory(self, visit: Visit) -> SlotMemory:
        """Return the slot of a visit."""
        return self.all_memory[visit.slot]

    def drop(self, visit: Visit) -> None:
        """Forget an expert that did not come, unless its slot is another's by now."""
        if visit.key in self._slots and self._slots.slot_of(visit.key) == visit.slot:
            self._slots.drop(visit.key)

    def __contains__(self, key: object) -> bool:
        """Say whether an expert has a slot."""
        return key in self._slots

    def lend(self, num_slots: int) -> list[SlotMemory]:
        """Hold fewer experts until `take_back`, and return the slots that nobody has then."""
        self._choice.lend(num_slots)
        self._lent = self._slots.lend(num_slots)
        return [self.all_memory[slot] for slot in self._lent]

    def take_back(self) -> None:
        """Have the slots that were lent."""
        self._choice.take_back()
        self._slots.take_back(self._lent)
        self._lent = []

    @property
    def report(self) -> CacheReport:
        """Return how the cache does."""
        return self._choice.report

    def free(self) -> None:
        """Give the memory back. Safe to call twice."""
        self.all_memory.clear()
        if self._arena is not None:
            self._device.free(self._arena)
            self._arena = None
