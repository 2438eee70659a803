"""Slots of memory that two processes share, made by one and passed to the other as a file descriptor.

The memory has no name, so that nothing is left behind when both processes die, whatever way they die. It is sealed, so
that neither side can shrink it under the other's feet.
"""

import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from teengined.core.errors import TransportError
from teengined.core.quantities import format_bytes
from teengined_plugins.transports.packets import SlotHeader

if TYPE_CHECKING:
    import torch

__all__ = ["RingMemory", "slot_bytes_for"]

_PAGE_BYTES = 4096
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def slot_bytes_for(max_message_bytes: int) -> int:
    """Return the bytes of one slot: whole pages, so that every tensor starts aligned."""
    return max(1, -(-max_message_bytes // _PAGE_BYTES)) * _PAGE_BYTES


class RingMemory:
    """`num_slots` slots of `slot_bytes`, mapped in this process. Pages are taken when they are first written."""

    def __init__(self, file: int, *, slot_bytes: int, num_slots: int) -> None:
        """Map `file`, which stays the caller's to close."""
        self._slot_bytes = slot_bytes
        self._num_slots = num_slots
        self._memory = mmap.mmap(file, slot_bytes * num_slots)

    @classmethod
    def create(cls, *, slot_bytes: int, num_slots: int) -> tuple["RingMemory", int]:
        """Return a new ring and its file descriptor, which is the caller's to send and close.

        Raises:
            TransportError: the system has no room for it.
        """
        size_bytes = slot_bytes * num_slots
        file = os.memfd_create("teengine-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, size_bytes)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            return cls(file, slot_bytes=slot_bytes, num_slots=num_slots), file
        except (OSError, OverflowError) as error:
            os.close(file)
            raise TransportError(f"no shared memory of {format_bytes(size_bytes)}: {error}") from error

    @classmethod
    def attach(cls, file: int, *, slot_bytes: int, num_slots: int) -> "RingMemory":
        """Map what the other side made, after checking that it is what it says.

        Raises:
            TransportError: it is smaller, or could become so.
        """
        try:
            seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
            sealed = seals & _SEALS == _SEALS
            if not sealed or os.fstat(file).st_size != slot_bytes * num_slots:
                raise TransportError("the other end offers shared memory of another size, or unsealed")
            return cls(file, slot_bytes=slot_bytes, num_slots=num_slots)
        except OSError as error:
            raise TransportError(f"cannot map the other end's shared memory: {error}") from error

    def write(self, header: SlotHeader, tensor: "torch.Tensor") -> None:
        """Copy `tensor` into its slot, from whatever device it is on."""
        if header.num_elements:
            self._view(header).copy_(tensor.detach())

    def read(self, header: SlotHeader) -> "torch.Tensor":
        """Return a copy of the tensor in its slot, on the CPU."""
        import torch

        if not header.num_elements:
            return torch.empty(header.shape, dtype=getattr(torch, header.dtype))
        return self._view(header).clone()

    def close(self) -> None:
        """Unmap. Views never leave this class, so that nothing can point here afterwards."""
        self._memory.close()

    def _view(self, header: SlotHeader) -> "torch.Tensor":
        import torch

        offset_bytes = header.sequence % self._num_slots * self._slot_bytes
        flat = torch.frombuffer(
            self._memory, dtype=getattr(torch, header.dtype), count=header.num_elements, offset=offset_bytes
        )
        return flat.view(header.shape)
