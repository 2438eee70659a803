"""The packets on the socket beside a shared-memory ring: what is in a slot, and what the ring is. Pure.

Every field is checked against bounds before anything is allocated by it: the other process may be of another version,
or broken.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from teengined.core.errors import TransportError

__all__ = ["ELEMENT_BYTES", "MAX_DIMENSIONS", "PACKET_BYTES", "Greeting", "SlotHeader"]

# Position is the code on the wire: append only.
ELEMENT_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float64": 8,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
_DTYPES = tuple(ELEMENT_BYTES)
MAX_DIMENSIONS = 8

_GREETING = struct.Struct("<8sQQ")
_MAGIC = b"TEENRNG1"
_HEADER = struct.Struct(f"<QqBB{MAX_DIMENSIONS}Q")
# Room for the longest packet, and one byte more, so that a longer one is seen.
PACKET_BYTES = _HEADER.size + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """First packet of a sender; the ring's file descriptor travels beside it."""

    slot_bytes: int
    num_slots: int

    def encode(self) -> bytes:
        """Return the packet."""
        return _GREETING.pack(_MAGIC, self.slot_bytes, self.num_slots)

    @classmethod
    def decode(cls, packet: bytes) -> "Greeting":
        """Read a packet; TransportError where it is none of this version."""
        if len(packet) != _GREETING.size or not packet.startswith(_MAGIC):
            raise TransportError("the other end of a shared-memory connection speaks another protocol")
        _, slot_bytes, num_slots = _GREETING.unpack(packet)
        return cls(slot_bytes=slot_bytes, num_slots=num_slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHeader:
    """What lies in the slot that a doorbell announces. Slots follow in turn, so `sequence` names the slot too."""

    sequence: int
    tag: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the tensor."""
        return self.num_elements * ELEMENT_BYTES[self.dtype]

    def encode(self) -> bytes:
        """Return the packet."""
        padded = (*self.shape, *(0,) * (MAX_DIMENSIONS - len(self.shape)))
        return _HEADER.pack(self.sequence, self.tag, _DTYPES.index(self.dtype), len(self.shape), *padded)

    @classmethod
    def decode(cls, packet: bytes, *, sequence: int, max_message_bytes: int) -> "SlotHeader":
        """Read a packet that must be the `sequence`-th and announce at most `max_message_bytes`.

        Raises:
            TransportError: it does not; says which field is wrong.
        """
        if len(packet) != _HEADER.size:
            raise TransportError(f"a doorbell has {_HEADER.size} bytes, not {len(packet)}")
        fields: tuple[int, ...] = _HEADER.unpack(packet)
        received_sequence, tag, dtype_code, num_dimensions, *dimensions = fields
        if received_sequence != sequence:
            raise TransportError(f"message {received_sequence} came where {sequence} was due")
        if dtype_code >= len(_DTYPES) or num_dimensions > MAX_DIMENSIONS:
            raise TransportError(f"unknown dtype {dtype_code} or too many dimensions ({num_dimensions})")
        header = cls(sequence=sequence, tag=tag, dtype=_DTYPES[dtype_code], shape=tuple(dimensions[:num_dimensions]))
        # An empty tensor takes no bytes, whatever its other dimensions claim.
        if max(header.shape, default=0) > max_message_bytes or header.num_bytes > max_message_bytes:
            raise TransportError(f"a message of shape {_words(header.shape)} exceeds {max_message_bytes} bytes")
        return header

    @classmethod
    def describe(cls, dtype: str, shape: Sequence[int], *, sequence: int, tag: int) -> "SlotHeader":
        """Return the header for a tensor to be sent; TransportError where it cannot be expressed."""
        if dtype not in ELEMENT_BYTES:
            raise TransportError(f"a tensor of {dtype} cannot be sent; one of {', '.join(_DTYPES)} can")
        if len(shape) > MAX_DIMENSIONS:
            raise TransportError(f"a tensor of {len(shape)} dimensions cannot be sent; {MAX_DIMENSIONS} is the most")
        if not -(2**63) <= tag < 2**63:
            raise TransportError(f"tag {tag} does not fit 64 bits")
        return cls(sequence=sequence, tag=tag, dtype=dtype, shape=tuple(shape))


def _words(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "()"
