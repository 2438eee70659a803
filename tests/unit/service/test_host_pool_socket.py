"""The pool's socket: descriptors reach workers, and a connection's end gives back what it did not fill."""

import os
import socket
import threading

import pytest

from teengined.core.errors import DeadlineExceeded, NotAllowed, TransportError
from teengined.core.sealed_memory import fill_memory, map_memory
from teengined.weights.host_pool_link import HostPoolLink
from teengined.weights.options import HostPoolAccess
from tests.fakes.running_pool import RunningPool

PAGE = 4096


@pytest.fixture
def pool():
    with RunningPool() as running:
        yield running


@pytest.fixture
def access(pool: RunningPool) -> HostPoolAccess:
    return pool.access("one", {"a": PAGE, "b": PAGE})


def test_a_unit_is_filled_through_one_connection_and_read_through_another(access: HostPoolAccess) -> None:
    with HostPoolLink(access, timeout_seconds=10) as first, HostPoolLink(access, timeout_seconds=10) as second:
        grant, descriptor = first.claim("a")
        assert grant.state == "fill"
        assert second.claim("a") == (type(grant)(state="busy", size_bytes=PAGE), None)
        assert descriptor is not None
        fill_memory(descriptor, memoryview(b"x" * PAGE))
        first.note_filled("a")

        grant, other = second.claim("a", wait=True)

        assert grant.state == "filled"
        assert other is not None
        assert map_memory(other, PAGE)[:] == b"x" * PAGE
        for each in (descriptor, other):
            os.close(each)


def test_who_waits_gets_the_unit_when_the_filler_leaves_without_having_filled_it(access: HostPoolAccess) -> None:
    first = HostPoolLink(access, timeout_seconds=10)
    first.claim("a")
    states: list[str] = []

    def wait() -> None:
        with HostPoolLink(access, timeout_seconds=10) as second:
            states.append(second.claim("a")[0].state)
            asked.set()
            states.append(second.claim("a", wait=True)[0].state)

    asked = threading.Event()
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert asked.wait(10)
    first.close()
    waiting.join(10)

    assert states == ["busy", "fill"]


def test_who_leaves_while_it_waits_is_forgotten(pool: RunningPool, access: HostPoolAccess) -> None:
    with HostPoolLink(access, timeout_seconds=10) as first:
        first.claim("a")
        with (
            HostPoolLink(access, timeout_seconds=0.05) as second,
            pytest.raises(DeadlineExceeded, match="another worker that was to fill a unit"),
        ):
            second.claim("a", wait=True)
        assert first.claim("a")[0].state == "fill"
    assert pool.call(lambda found: found.describe().filled_bytes) == 0


def test_a_wrong_ticket_is_refused_and_the_connection_goes_on(access: HostPoolAccess) -> None:
    stranger = HostPoolAccess(path=access.path, ticket="guessed")
    with HostPoolLink(stranger, timeout_seconds=10) as link:
        for _ in range(2):
            with pytest.raises(NotAllowed, match="no such unit"):
                link.claim("a")


def test_a_packet_that_is_none_is_refused(access: HostPoolAccess) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
        raw.connect(access.path)
        raw.settimeout(10)
        raw.send(b"nonsense")

        assert b"pool_refusal" in raw.recv(4096)


def test_where_nobody_listens_it_is_told_at_once(tmp_path) -> None:
    with pytest.raises(TransportError, match="does not answer: No such file"):
        HostPoolLink(HostPoolAccess(path=str(tmp_path / "none"), ticket=""), timeout_seconds=1)


def test_a_daemon_that_goes_is_noticed_at_once() -> None:
    with RunningPool() as pool:
        access = pool.access("one", {"a": PAGE})
        link = HostPoolLink(access, timeout_seconds=10)
        link.claim("a")
    with pytest.raises(TransportError, match="does not answer"):
        link.claim("a")
    link.close()
