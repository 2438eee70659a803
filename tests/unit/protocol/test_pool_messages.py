"""Messages to the pool of host memory: one packet each."""

import pytest

from teengined.core.errors import ProtocolError, UnknownVersion
from teengined.protocol.pool_messages import (
    MAX_PACKET_BYTES,
    ClaimUnit,
    PoolRefusal,
    UnitFilled,
    UnitGrant,
    pack,
    unpack,
)


@pytest.mark.parametrize(
    "message",
    [
        ClaimUnit(ticket="t", digest="blake2b:" + 64 * "0", wait=True),
        UnitFilled(ticket="t", digest="d"),
        UnitGrant(state="busy", size_bytes=1 << 40),
        PoolRefusal(code="not_allowed", message="no", hint=""),
    ],
)
def test_a_message_is_one_packet_and_comes_back(message: object) -> None:
    packet = pack(message)

    assert len(packet) <= MAX_PACKET_BYTES
    assert unpack(packet) == message


@pytest.mark.parametrize("packet", [b"", b"TE", b"TE\x01", b"TE\x01\x93", b"XX\x01\xc0", bytes(100)])
def test_what_is_no_message_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(packet)


def test_another_version_is_refused_as_such() -> None:
    with pytest.raises(UnknownVersion):
        unpack(b"TE\x63" + pack(UnitFilled(ticket="t", digest="d"))[3:])
