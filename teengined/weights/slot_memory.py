"""One slot for an expert and what is in it."""

from dataclasses import dataclass

import torch

from teengined.interfaces.driver import CopyEvent
from teengined.weights.expert_reads import Landing
from teengined.weights.unit_views import UnitTensors

__all__ = ["SlotMemory", "carve"]


@dataclass(eq=False, slots=True, kw_only=True)
class SlotMemory:
    """One slot. Its buffer may be exchanged for another slot's, which is as large."""

    buffer: torch.Tensor
    landing: Landing | None = None
    """The last read into it, where it is read into."""
    tensors: UnitTensors | None = None
    """Views of the expert that is ready in it."""
    computed: CopyEvent | None = None
    """When what was queued on its expert is done, on a device that queues."""

    @property
    def is_settled(self) -> bool:
        """Say whether nothing is being read into it."""
        return self.landing is None or self.landing.is_done

    def memory(self, size_bytes: int) -> memoryview:
        """Return its first bytes to read into, where it lies in host memory."""
        return self.buffer.numpy().data[:size_bytes]


def carve(arena: torch.Tensor, num_slots: int, slot_bytes: int) -> list[SlotMemory]:
    """Return the slots that lie side by side in `arena`."""
    return [SlotMemory(buffer=arena[i * slot_bytes : (i + 1) * slot_bytes]) for i in range(num_slots)]
