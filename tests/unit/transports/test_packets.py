import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import TransportError
from teengined_plugins.transports.packets import ELEMENT_BYTES, MAX_DIMENSIONS, PACKET_BYTES, Greeting, SlotHeader

LIMIT = 1 << 20
HEADERS = st.builds(
    SlotHeader,
    sequence=st.integers(0, 2**63),
    tag=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from(list(ELEMENT_BYTES)),
    shape=st.lists(st.integers(0, 5), max_size=MAX_DIMENSIONS).map(tuple),
)


@given(header=HEADERS)
def test_header_comes_back_as_it_was(header: SlotHeader) -> None:
    packet = header.encode()

    assert len(packet) < PACKET_BYTES
    if header.num_bytes <= LIMIT:
        assert SlotHeader.decode(packet, sequence=header.sequence, max_message_bytes=LIMIT) == header


@given(packet=st.binary(max_size=PACKET_BYTES))
def test_any_bytes_are_a_valid_header_or_an_error_of_ours(packet: bytes) -> None:
    try:
        header = SlotHeader.decode(packet, sequence=0, max_message_bytes=LIMIT)
    except TransportError:
        return
    assert header.num_bytes <= LIMIT


@given(packet=st.binary(max_size=64))
def test_any_bytes_are_a_greeting_or_an_error_of_ours(packet: bytes) -> None:
    with pytest.raises(TransportError, match="another protocol"):
        Greeting.decode(packet)


def test_greeting_comes_back_as_it_was() -> None:
    greeting = Greeting(slot_bytes=8192, num_slots=3)

    assert Greeting.decode(greeting.encode()) == greeting


@pytest.mark.parametrize("shape", [(2**40,), (2**32, 2**32), (0, 2**63), (1024, 1025)])
def test_shape_beyond_the_limit_is_refused_before_anything_is_allocated(shape: tuple[int, ...]) -> None:
    packet = SlotHeader(sequence=0, tag=0, dtype="uint8", shape=shape).encode()

    with pytest.raises(TransportError, match="exceeds"):
        SlotHeader.decode(packet, sequence=0, max_message_bytes=LIMIT)


def test_message_out_of_turn_is_refused() -> None:
    packet = SlotHeader(sequence=5, tag=0, dtype="uint8", shape=()).encode()

    with pytest.raises(TransportError, match="message 5 came where 4 was due"):
        SlotHeader.decode(packet, sequence=4, max_message_bytes=LIMIT)


@pytest.mark.parametrize(
    ("dtype", "shape", "tag", "problem"),
    [
        ("complex64", (1,), 0, "complex64"),
        ("float32", (1,) * 9, 0, "9 dimensions"),
        ("float32", (1,), 2**63, "64 bits"),
    ],
)
def test_tensor_that_cannot_be_described_is_refused(dtype: str, shape: tuple[int, ...], tag: int, problem: str) -> None:
    with pytest.raises(TransportError, match=problem):
        SlotHeader.describe(dtype, shape, sequence=0, tag=tag)
