"""The memory of one expert cache: equal slots side by side in one buffer, and the decision who lies in which."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from teengined.core.plan import ExpertCache
from teengined.interfaces.driver import CopyEvent, Device
from teengined.weights.expert_policies import ExpertKey
from teengined.weights.expert_reads import Landing
from teengined.weights.expert_slots import ExpertSlots, Visit
from teengined.weights.policy_choice import CacheReport, PolicyChoice
from teengined.weights.unit_views import UnitTensors

__all__ = ["ExpertBank", "SlotMemory", "carve"]


@dataclass(eq=False, slots=True, kw_only=True)
class SlotMemory:
    """One slot and what is in it."""

    buffer: torch.Tensor
    landing: Landing | None = None
    """The last read into it, where it is read into."""
    tensors: UnitTensors | None = None
    """Views of the expert that is ready in it."""
    computed: CopyEvent | None = None
    """When what was queued on its expert is done, on a device that queues."""


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


def carve(arena: torch.Tensor, num_slots: int, slot_bytes: int) -> list[SlotMemory]:
    """Return the slots that lie side by side in `arena`."""
    return [SlotMemory(buffer=arena[i * slot_bytes : (i + 1) * slot_bytes]) for i in range(num_slots)]
