"""Bytes from anyone become a message or a `ProtocolError`, and nothing else."""

import contextlib
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core import records
from teengined.core.errors import MessageTooLarge, ProtocolError, RequestError, UnknownVersion
from teengined.protocol import codec
from teengined.protocol.codec import HEADER, CodecLimits, Envelope, correlation_of, decode, encode
from teengined.protocol.messages import CLIENT_MESSAGES
from teengined.protocol.worker_messages import WORKER_MESSAGES

LIMITS = CodecLimits(max_message_bytes=1 << 16, max_items=1 << 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    text: str
    copies: int = 1


TAGS = {"note": Note}

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)


def body(content: Any) -> list[bytes]:
    return [HEADER, msgpack.packb(content)]


def test_message_comes_back_with_its_correlation() -> None:
    envelope = Envelope(correlation=7, message=Note(text="ü", copies=3))

    assert decode(encode(envelope, TAGS, LIMITS), TAGS, LIMITS) == envelope


def test_missing_field_takes_its_default() -> None:
    assert decode(body([0, "note", {"text": "a"}]), TAGS, LIMITS).message == Note(text="a", copies=1)


@pytest.mark.parametrize(("note", "told"), [(Note(text="\udcff"), "Unicode"), (Note(text="", copies=2**64), "range")])
def test_what_no_message_can_hold_is_refused_before_sending(note: Note, told: str) -> None:
    with pytest.raises(RequestError, match=f"note: .*{told}"):
        encode(Envelope(correlation=1, message=note), TAGS, LIMITS)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_frames_are_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames, TAGS, LIMITS)


@given(st.binary(max_size=400))
def test_any_body_is_a_message_or_a_protocol_error(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode([HEADER, content], CLIENT_MESSAGES, LIMITS)


@given(plain)
def test_any_msgpack_is_a_message_or_a_protocol_error(content: Any) -> None:
    with pytest.raises(ProtocolError):
        decode(body(content), CLIENT_MESSAGES, LIMITS)


@given(st.sampled_from([*CLIENT_MESSAGES.items()]), st.data())
def test_known_message_with_any_fields_is_built_or_refused(entry: tuple[str, type], data: st.DataObject) -> None:
    tag, cls = entry
    fields = data.draw(st.dictionaries(st.sampled_from([*cls.__dataclass_fields__, "extra"]), plain))
    with contextlib.suppress(ProtocolError):
        assert type(decode(body([1, tag, fields]), CLIENT_MESSAGES, LIMITS).message) is cls


@given(st.binary(max_size=200))
def test_correlation_is_found_or_zero_for_any_body(content: bytes) -> None:
    assert correlation_of([HEADER, content], LIMITS) >= 0


@pytest.mark.parametrize("content", [[9, "nonsense", {}], [9, "note", {"txt": "a"}], [9], [9, 1, 2, 3]])
def test_correlation_of_a_refused_message_is_still_read(content: Any) -> None:
    assert correlation_of(body(content), LIMITS) == 9


@pytest.mark.parametrize("content", [["9", "note", {}], [True, "note", {}], [-1, "note", {}], [], 9, {"a": 1}])
def test_correlation_that_is_no_number_counts_as_zero(content: Any) -> None:
    assert correlation_of(body(content), LIMITS) == 0


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_version_is_refused_by_its_number(version: int) -> None:
    with pytest.raises(UnknownVersion, match=f"version {version} "):
        decode([b"TE" + bytes([version]), b""], TAGS, LIMITS)


@pytest.mark.parametrize(
    "frames", [[], [HEADER], [HEADER, b"", b""], [b"XX\x01", b""], [b"", b""], [HEADER + b"!", b""]]
)
def test_what_does_not_begin_as_a_message_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="not a teengine message"):
        decode(frames, TAGS, LIMITS)


def test_message_above_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(MessageTooLarge, match="limit is 65536"):
        encode(Envelope(correlation=0, message=Note(text="x" * (1 << 16))), TAGS, LIMITS)


def test_message_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(MessageTooLarge):
        decode([HEADER, b"\xc1" * (LIMITS.max_message_bytes + 1)], TAGS, LIMITS)


HOSTILE = {
    "array header that promises four billion items": b"\xdd\xff\xff\xff\xff",
    "table header that promises four billion keys": b"\xdf\xff\xff\xff\xff",
    "text header longer than the body": b"\xdb\xff\xff\xff\xff",
    "ten thousand arrays in one another": b"\x91" * 10_000,
    "ten thousand tables in one another": b"\x81\xa1a" * 10_000,
    "array above the item limit": msgpack.packb([0, "note", [0] * 1025]),
    "table above the key limit": msgpack.packb([0, "note", {str(key): 0 for key in range(1025)}]),
    "extension type": b"\xc7\x01\x05\x00",
    "timestamp": msgpack.packb([0, "note", msgpack.Timestamp(0, 0)]),
    "byte that means nothing": b"\xc1",
    "text that is not UTF-8": b"\x93\x00\xa4note\x81\xa4text\xa1\xff",
    "trailing bytes": msgpack.packb([0, "note", {"text": "a"}]) + b"\x00",
    "keys that are numbers": b"\x93\x00\xa4note\x81\x01\x02",
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_msgpack_is_a_protocol_error(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode([HEADER, content], TAGS, LIMITS)


@pytest.mark.parametrize("table", [CLIENT_MESSAGES, WORKER_MESSAGES], ids=["client", "worker"])
def test_refusal_names_the_message_and_the_field(table: dict[str, type]) -> None:
    tag = next(iter(table))

    with pytest.raises(ProtocolError, match=f"{tag}: unknown key 'surprise'"):
        decode(body([0, tag, {"surprise": 1}]), table, LIMITS)


def test_long_unknown_tag_is_not_echoed_in_full() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(body([0, "x" * 5000, {}]), TAGS, LIMITS)

    assert len(caught.value.message) < 200


class Counted:
    """Counts how often one was made."""

    num_made = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    pairs: tuple[tuple[int, float], ...] = ()
    texts: tuple[str, ...] = ()
    inner: "tuple[Item, ...]" = ()

    def __post_init__(self) -> None:
        Counted.num_made += 1


@pytest.mark.parametrize(
    "fields",
    [
        {"pairs": [[1, 1.0]] * 1000},
        {"pairs": [[]] * 1000},
        {"inner": [{"inner": [{"inner": [{}] * 9}] * 9}] * 9},
    ],
)
def test_structures_are_counted_before_any_is_converted(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "_convert", None)
    monkeypatch.setattr(Counted, "num_made", 0)
    body = msgpack.packb([7, "item", fields])

    with pytest.raises(MessageTooLarge, match="more than 500 arrays and tables"):
        decode([HEADER, body], {"item": Item}, CodecLimits(max_structures=500))

    assert Counted.num_made == 0


def test_millions_of_structures_are_not_even_read(monkeypatch: pytest.MonkeyPatch):
    num_read = 0
    count = codec._Count.__call__

    def watched(self: Any, structure: Any) -> Any:
        nonlocal num_read
        num_read += 1
        return count(self, structure)

    monkeypatch.setattr(codec._Count, "__call__", watched)
    for empty in (b"\x90", b"\x80"):
        body = b"\x93\x07\xa4item\x81\xa5pairs\xdd" + (1000).to_bytes(4, "big") + empty * 1000
        with pytest.raises(MessageTooLarge, match="more than 500 arrays and tables"):
            decode([HEADER, body], {"item": Item}, CodecLimits(max_structures=500))

    assert num_read == 2 * (500 + 2)  # The message's own array counts as none, and one is too many.


def test_plain_values_and_few_structures_pass():
    fields = {"texts": ["a"] * 100_000, "pairs": [[1, 0.5]] * 400}
    limits = CodecLimits(max_structures=500)

    message = decode([HEADER, msgpack.packb([7, "item", fields])], {"item": Item}, limits).message

    assert (len(message.texts), message.pairs) == (100_000, ((1, 0.5),) * 400)
