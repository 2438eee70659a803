"""Messages between a worker's stage and the daemon's pool of host memory, over a socket that passes descriptors.

    worker -> daemon                     daemon -> worker
    ClaimUnit                            UnitGrant, with the memory's descriptor unless another worker fills it
    UnitFilled                           UnitGrant, of memory that is sealed
    either                               PoolRefusal

One question at a time, each with one answer. Each message is one packet: the two frames of `codec` joined.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from teengined.protocol.codec import HEADER, CodecLimits, Envelope, decode, encode

__all__ = ["MAX_PACKET_BYTES", "ClaimUnit", "PoolRefusal", "UnitFilled", "UnitGrant", "pack", "unpack"]

MAX_PACKET_BYTES = 16 << 10
"""A digest, or an error's sentences."""
_LIMITS = CodecLimits(max_message_bytes=MAX_PACKET_BYTES - len(HEADER), max_items=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimUnit:
    """Ask for a unit's memory."""

    ticket: str
    """From `OpenStage`; proves that the deployment has a place in the pool."""
    digest: str
    """Of the unit: equal content is kept once."""
    wait: bool = False
    """Answer when the memory is there, or this worker is to fill it, and not before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFilled:
    """The unit's bytes were read, compared with the digest, written, and sealed."""

    ticket: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGrant:
    """Where a unit's memory stands."""

    state: Literal["filled", "fill", "busy"]
    """`filled`: sealed, to be mapped. `fill`: empty, and this worker's to fill. `busy`: another worker fills it."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRefusal:
    """The question was wrong, or cannot be answered. Fields as in `core.errors`."""

    code: str
    message: str
    hint: str


_MESSAGES: Mapping[str, type] = {
    "claim_unit": ClaimUnit,
    "unit_filled": UnitFilled,
    "unit_grant": UnitGrant,
    "pool_refusal": PoolRefusal,
}


def pack(message: Any) -> bytes:
    """Return a message's packet."""
    return b"".join(encode(Envelope(correlation=0, message=message), _MESSAGES, _LIMITS))


def unpack(packet: bytes) -> Any:
    """Return a packet's message. Raises ProtocolError as `codec.decode`."""
    frames = (packet[: len(HEADER)], packet[len(HEADER) :])
    return decode(frames, _MESSAGES, _LIMITS).message
