"""The shared memory of one `shm` connection, and the small messages that say what lies in which slot.

Everything received is checked against the receiver's own bounds: the size and the seals of the memory file, the slot,
the dtype and the shape.
"""

import fcntl
import math
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from teengined.core.errors import TransportError
from teengined.interfaces.transport import TransportOptions

if TYPE_CHECKING:
    import torch

__all__ = ["SLOT_CREDIT", "Doorbell", "SharedSlots"]

SLOT_CREDIT = struct.Struct("<I")
_HEAD = struct.Struct("<IqBB")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_MAX_DIMS = 8
# The other end may not shrink what is mapped here: a read past the end of a file kills the process.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorbell:
    """What lies in a slot."""

    slot: int
    tag: int
    dtype: str
    shape: tuple[int, ...]

    def pack(self) -> bytes:
        """Return the bytes of the message."""
        head = _HEAD.pack(self.slot, self.tag, _DTYPES.index(self.dtype), len(self.shape))
        return head + struct.pack(f"<{len(self.shape)}q", *self.shape)

    @classmethod
    def unpack(cls, message: bytes) -> Self:
        """Return the message in `message`.

        Raises:
            TransportError: it is none.
        """
        try:
            slot, tag, dtype, num_dims = _HEAD.unpack_from(message)
            shape = struct.unpack(f"<{num_dims}q", message[_HEAD.size :])
            name = _DTYPES[dtype]
        except (struct.error, IndexError) as error:
            raise TransportError(f"a message of {len(message)} bytes that describes no tensor") from error
        if num_dims > _MAX_DIMS or min(shape, default=0) < 0:
            raise TransportError(f"a tensor of impossible shape {shape}")
        return cls(slot=slot, tag=tag, dtype=name, shape=shape)


class SharedSlots:
    """A mapped memory file of equal slots."""

    def __init__(self, descriptor: int, options: TransportOptions) -> None:
        """Map `descriptor`, which from now on belongs to this object."""
        self.descriptor = descriptor
        self.slot_bytes = _slot_bytes(options)
        self._num_slots = options.num_slots
        self._memory = mmap.mmap(descriptor, self.slot_bytes * options.num_slots)

    @classmethod
    def create(cls, options: TransportOptions) -> Self:
        """Make a new memory file whose size can never change."""
        descriptor = os.memfd_create("teengine-shm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, _slot_bytes(options) * options.num_slots)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return cls(descriptor, options)

    @classmethod
    def receive(cls, descriptor: int, options: TransportOptions) -> Self:
        """Map what the other end made.

        Raises:
            TransportError: its size or its seals are not those agreed.
        """
        size, expected = os.fstat(descriptor).st_size, _slot_bytes(options) * options.num_slots
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        if size != expected or seals & _SEALS != _SEALS:
            os.close(descriptor)
            raise TransportError(f"the sender's memory has {size} bytes and seals {seals:#x}; {expected} were agreed")
        return cls(descriptor, options)

    def write(self, slot: int, tag: int, tensor: "torch.Tensor") -> Doorbell:
        """Copy a tensor into a slot and return the message that announces it."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or tensor.ndim > _MAX_DIMS:
            raise TransportError(f"a tensor of {dtype} with {tensor.ndim} dimensions cannot be sent")
        doorbell = Doorbell(slot=slot, tag=tag, dtype=dtype, shape=tuple(tensor.shape))
        if tensor.numel():
            self._view(doorbell).copy_(tensor)
        return doorbell

    def read(self, doorbell: Doorbell) -> "torch.Tensor":
        """Return a copy of what lies in a slot.

        Raises:
            TransportError: the message points out of the slots.
        """
        import torch

        if doorbell.slot >= self._num_slots:
            raise TransportError(f"slot {doorbell.slot} of {self._num_slots}")
        if not math.prod(doorbell.shape):
            return torch.empty(doorbell.shape, dtype=getattr(torch, doorbell.dtype))
        return self._view(doorbell).clone()

    def close(self) -> None:
        """Unmap and close. Safe to call twice."""
        if self.descriptor >= 0:
            self._memory.close()
            os.close(self.descriptor)
            self.descriptor = -1

    def _view(self, doorbell: Doorbell) -> "torch.Tensor":
        import torch

        dtype = getattr(torch, doorbell.dtype)
        num_elements = math.prod(doorbell.shape)
        if num_elements * dtype.itemsize > self.slot_bytes:
            raise TransportError(f"a tensor of shape {doorbell.shape} in a slot of {self.slot_bytes} bytes")
        offset_bytes = doorbell.slot * self.slot_bytes
        flat = torch.frombuffer(self._memory, dtype=dtype, count=num_elements, offset=offset_bytes)
        return flat.view(doorbell.shape)


def _slot_bytes(options: TransportOptions) -> int:
    return max(mmap.PAGESIZE, -(-options.max_message_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
