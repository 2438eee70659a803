"""Messages to frames and back, bounded before anything is built.

Two frames: a header of three bytes (`TE` and the protocol version) and a msgpack array `[correlation, tag, fields]`.
A short message of hostile msgpack can expand many times in memory, so depth and counts are bounded besides bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgpack

from teengined.core.errors import MessageTooLarge, ProtocolError, RequestError, UnknownVersion
from teengined.core.records import RecordError, from_mapping, to_mapping

__all__ = ["HEADER", "PROTOCOL_VERSION", "CodecLimits", "Envelope", "correlation_of", "decode", "encode"]

T = TypeVar("T")
PROTOCOL_VERSION = 1
_MAGIC = b"TE"
# A message's own array, around its fields.
_ENVELOPE_STRUCTURES = 1
# An array header of at most 5 bytes and a number of at most 9.
_CORRELATION_BYTES = 16
HEADER = _MAGIC + bytes([PROTOCOL_VERSION])


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecLimits:
    """What a receiver accepts."""

    max_message_bytes: int = 4 << 20
    """A prompt of a million tokens as text is about 4 MB."""
    max_items: int = 1 << 20
    """Of any one array: a million token ids. Tables are held to 1024 keys."""
    max_structures: int | None = None
    """Arrays and tables of a whole message. Each costs as much to check as a thousand numbers, and the lengths that a
    field allows are known only when all are checked. None: whoever sends it is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message and the number of the call it belongs to."""

    correlation: int
    message: Any


def encode(envelope: Envelope, tags: Mapping[str, type], limits: CodecLimits) -> list[bytes]:
    """Return the frames of a message.

    Raises:
        MessageTooLarge: it would be refused by a receiver with the same limits; nothing may be sent.
        RequestError: a number needs more than 64 bits, or a text is not Unicode.
    """
    tag = next(tag for tag, cls in tags.items() if cls is type(envelope.message))
    body = _pack([envelope.correlation, tag, to_mapping(envelope.message)], tag)
    if len(body) > limits.max_message_bytes:
        raise MessageTooLarge(
            f"message {tag} has {len(body)} bytes; the limit is {limits.max_message_bytes}",
            hint="send less at once, or raise protocol.max_message on both sides",
        )
    return [HEADER, body]


def _pack(content: list[Any], tag: str) -> bytes:
    try:
        return msgpack.packb(content)
    except OverflowError as error:
        raise RequestError(f"{tag}: a number is out of range", hint="whole numbers have at most 64 bits") from error
    except UnicodeEncodeError as error:
        raise RequestError(f"{tag}: a text is not valid Unicode", hint="send text in UTF-8") from error


def decode(frames: Sequence[bytes], tags: Mapping[str, type], limits: CodecLimits) -> Envelope:
    """Return the message in `frames`.

    Raises:
        UnknownVersion: the header names another version.
        MessageTooLarge: a frame, or the number of arrays and tables, is above the limits.
        ProtocolError: anything else that is not a message; `correlation_of` finds the call to answer.
    """
    _check_frames(frames, limits)
    return _decode_body(frames[1], tags, limits)


def correlation_of(frames: Sequence[bytes], limits: CodecLimits) -> int:
    """Return the call number of a message that `decode` refused, so that the error finds its caller; 0 if unreadable.

    Only the first bytes are looked at, so an oversized message costs nothing here. `limits` bounds nothing more.
    """
    if len(frames) != 2 or not bytes(frames[0][: len(_MAGIC)]).startswith(_MAGIC):
        return 0
    unpacker: Any = cast("Any", msgpack).Unpacker(max_buffer_size=_CORRELATION_BYTES, max_array_len=limits.max_items)
    unpacker.feed(frames[1][:_CORRELATION_BYTES])
    try:
        unpacker.read_array_header()
        correlation = unpacker.unpack()
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        return 0
    return correlation if _is_correlation(correlation) else 0


def _check_frames(frames: Sequence[bytes], limits: CodecLimits) -> None:
    if len(frames) != 2 or len(frames[0]) != len(HEADER) or not bytes(frames[0]).startswith(_MAGIC):
        raise ProtocolError("not a teengine message", hint="use teengined.client, or read docs/protocol.md")
    if frames[0][2] != PROTOCOL_VERSION:
        raise UnknownVersion(
            f"protocol version {frames[0][2]} is not spoken here, only {PROTOCOL_VERSION}",
            hint="install the client of the daemon's version",
        )
    if len(frames[1]) > limits.max_message_bytes:
        raise MessageTooLarge(f"message of {len(frames[1])} bytes; the limit is {limits.max_message_bytes}")


def _unpack(body: bytes, limits: CodecLimits) -> Any:
    count = None if limits.max_structures is None else _Count(limits.max_structures)
    try:
        return msgpack.unpackb(
            body,
            list_hook=count,
            object_hook=count,
            strict_map_key=True,
            max_array_len=limits.max_items,
            max_map_len=1024,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not valid msgpack within the limits: {error!s:.200}") from error


class _Count:
    """Counts arrays and tables while they are read, so that a message of millions ends before they are made."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_found = -_ENVELOPE_STRUCTURES

    def __call__(self, structure: T) -> T:
        self._num_found += 1
        if self._num_found > self._limit:
            raise MessageTooLarge(
                f"more than {self._limit} arrays and tables in one message",
                hint="send less at once, or raise protocol.max_structures",
            )
        return structure


def _decode_body(body: bytes, tags: Mapping[str, type], limits: CodecLimits) -> Envelope:
    content = _unpack(body, limits)
    if not isinstance(content, list) or len(cast("list[Any]", content)) != 3:
        raise ProtocolError("a message is an array of correlation, tag and fields")
    correlation, tag, fields = cast("list[Any]", content)
    if not _is_correlation(correlation):
        raise ProtocolError("the correlation must be a number from 0 to 2^63 - 1")
    cls = tags.get(tag) if isinstance(tag, str) else None
    if cls is None:
        raise ProtocolError(f"unknown message {tag!r:.60}")
    try:
        return Envelope(correlation=correlation, message=from_mapping(cls, fields))
    except RecordError as error:
        raise ProtocolError(f"{tag}: {error}") from error


def _is_correlation(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
