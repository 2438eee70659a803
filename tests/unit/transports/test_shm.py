import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from teengined.core.errors import PeerLost, TransportError, TransportTimeout
from teengined.interfaces.transport import Receiver, TransportOptions
from teengined_plugins.transports.packets import Greeting, SlotHeader
from teengined_plugins.transports.ring_memory import RingMemory
from teengined_plugins.transports.shm import MAX_SLOTS, ShmTransport

OPTIONS = TransportOptions(max_message_bytes=4096, num_slots=2)


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="teengine-") as directory:
        yield f"{directory}/a"


@pytest.fixture
def receiver(address: str) -> Iterator[Receiver]:
    listening = ShmTransport().listen(address, OPTIONS)
    yield listening
    listening.close()


def _dial(address: str) -> socket.socket:
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dialled.connect(f"{address}.sock")
    return dialled


def _greet(address: str, greeting: Greeting, files: list[int]) -> socket.socket:
    dialled = _dial(address)
    socket.send_fds(dialled, [greeting.encode()], files)
    return dialled


@pytest.mark.usefixtures("receiver")
def test_socket_is_its_owners_alone(address: str) -> None:
    assert stat.S_IMODE(Path(f"{address}.sock").stat().st_mode) == 0o600


def test_socket_goes_when_the_sender_has_come(address: str, receiver: Receiver) -> None:
    sender = ShmTransport().connect(address, OPTIONS, timeout_seconds=5)
    sender.send(1, torch.ones(3), timeout_seconds=5)
    receiver.recv(timeout_seconds=5)

    assert list(Path(address).parent.iterdir()) == []
    sender.close()


def test_socket_that_a_dead_process_left_is_replaced(address: str) -> None:
    program = f"import os, socket; socket.socket(1, socket.SOCK_SEQPACKET).bind({address + '.sock'!r}); os._exit(0)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert Path(f"{address}.sock").exists()

    ShmTransport().listen(address, OPTIONS).close()

    assert not Path(f"{address}.sock").exists()


def test_file_that_is_no_socket_is_left_alone(address: str) -> None:
    Path(f"{address}.sock").write_text("precious")

    with pytest.raises(TransportError, match="is no socket"):
        ShmTransport().listen(address, OPTIONS)

    assert Path(f"{address}.sock").read_text() == "precious"


def test_address_too_long_for_a_socket_says_what_to_do() -> None:
    with pytest.raises(TransportError, match="exceeds") as raised:
        ShmTransport().listen("/tmp/" + "x" * 200, OPTIONS)

    assert "runtime directory" in raised.value.hint


def test_directory_that_is_not_there_is_told(address: str) -> None:
    with pytest.raises(TransportError, match="cannot listen"):
        ShmTransport().listen(f"{address}/none/b", OPTIONS)


@pytest.mark.parametrize("num_slots", [0, MAX_SLOTS + 1])
def test_number_of_slots_is_bounded(address: str, num_slots: int) -> None:
    with pytest.raises(TransportError, match="slots"):
        ShmTransport().listen(address, TransportOptions(max_message_bytes=1, num_slots=num_slots))


def test_caller_that_says_nothing_and_leaves_does_not_count_as_the_sender(address: str, receiver: Receiver) -> None:
    _dial(address).close()
    with pytest.raises(TransportTimeout):
        receiver.recv(timeout_seconds=0.05)

    sender = ShmTransport().connect(address, OPTIONS, timeout_seconds=5)
    sender.send(1, torch.ones(3), timeout_seconds=5)

    assert receiver.recv(timeout_seconds=5).tag == 1
    sender.close()


def test_ends_with_different_bounds_do_not_connect(address: str, receiver: Receiver) -> None:
    sender = ShmTransport().connect(address, TransportOptions(max_message_bytes=2**20, num_slots=2), timeout_seconds=5)

    with pytest.raises(TransportError, match="the ends disagree"):
        receiver.recv(timeout_seconds=5)
    with pytest.raises(PeerLost):
        sender.send(1, torch.ones(3), timeout_seconds=5)

    sender.close()


def test_memory_that_its_maker_could_shrink_is_refused(address: str, receiver: Receiver) -> None:
    file = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, 2 * 4096)
    dialled = _greet(address, Greeting(slot_bytes=4096, num_slots=2), [file])

    with pytest.raises(TransportError, match="unsealed"):
        receiver.recv(timeout_seconds=5)

    dialled.close()
    os.close(file)


def test_memory_smaller_than_promised_is_refused(address: str, receiver: Receiver) -> None:
    ring, file = RingMemory.create(slot_bytes=4096, num_slots=1)
    dialled = _greet(address, Greeting(slot_bytes=4096, num_slots=2), [file])

    with pytest.raises(TransportError, match="another size"):
        receiver.recv(timeout_seconds=5)

    dialled.close()
    ring.close()
    os.close(file)


def test_greeting_without_memory_is_refused(address: str, receiver: Receiver) -> None:
    dialled = _greet(address, Greeting(slot_bytes=4096, num_slots=2), [])

    with pytest.raises(TransportError, match="disagree"):
        receiver.recv(timeout_seconds=5)

    dialled.close()


@pytest.mark.parametrize(
    "packet",
    [b"ring", SlotHeader(sequence=0, tag=0, dtype="int64", shape=(4096,)).encode()],
    ids=["garbage", "larger-than-the-slot"],
)
def test_doorbell_that_lies_is_refused(address: str, receiver: Receiver, packet: bytes) -> None:
    ring, file = RingMemory.create(slot_bytes=4096, num_slots=2)
    dialled = _greet(address, Greeting(slot_bytes=4096, num_slots=2), [file])
    dialled.send(packet)

    with pytest.raises(TransportError):
        receiver.recv(timeout_seconds=5)

    dialled.close()
    ring.close()
    os.close(file)


def test_no_descriptor_is_left_open(address: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(5):
        receiver = ShmTransport().listen(address, OPTIONS)
        sender = ShmTransport().connect(address, OPTIONS, timeout_seconds=5)
        sender.send(1, torch.ones(3), timeout_seconds=5)
        receiver.recv(timeout_seconds=5)
        sender.close()
        receiver.close()

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_slot_larger_than_any_memory_is_refused(address: str, receiver: Receiver) -> None:
    with pytest.raises(TransportError, match="no shared memory"):
        ShmTransport().connect(address, TransportOptions(max_message_bytes=2**62, num_slots=2), timeout_seconds=5)
    with pytest.raises(TransportTimeout):
        receiver.recv(timeout_seconds=0.05)
