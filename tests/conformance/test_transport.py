"""Every installed transport against the contract: in one process, and with a real peer as far as it reaches."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from teengined.core.errors import PeerLost, TransportError, TransportTimeout
from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.transport import Receiver, Sender, Transport, TransportOptions
from tests.conformance.transport_peer import OPTIONS, TIMEOUT_SECONDS, expected_message, recv_messages, send_messages

TRANSPORTS = PluginRegistry.load().transports()
BETWEEN_PROCESSES = [name for name, transport in TRANSPORTS.items() if transport.reach != "process"]
SHORT_SECONDS = 0.05


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> Transport:
    return TRANSPORTS[request.param]


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path, whose length would not fit a socket's name.
    with tempfile.TemporaryDirectory(prefix="teengine-") as directory:
        yield f"{directory}/0-1"


@pytest.fixture
def ends(transport: Transport, address: str) -> Iterator[tuple[Sender, Receiver]]:
    receiver = transport.listen(address, OPTIONS)
    sender = transport.connect(address, OPTIONS, timeout_seconds=TIMEOUT_SECONDS)
    yield sender, receiver
    sender.close()
    receiver.close()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5),
        torch.randn(2, 3, 4).bfloat16(),
        torch.randn(7).half(),
        torch.arange(-4, 4),
        torch.arange(6, dtype=torch.int32).view(3, 2),
        torch.arange(9, dtype=torch.uint8),
        torch.tensor(2.5),
        torch.empty(0, 8),
        torch.tensor([float("nan"), float("inf"), -0.0]),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)
def test_message_arrives_bit_for_bit(ends: tuple[Sender, Receiver], tensor: torch.Tensor) -> None:
    sender, receiver = ends

    sender.send(7, tensor, timeout_seconds=TIMEOUT_SECONDS)
    message = receiver.recv(timeout_seconds=TIMEOUT_SECONDS)

    assert (message.tag, message.tensor.dtype, message.tensor.shape) == (7, tensor.dtype, tensor.shape)
    assert torch.equal(_bits(message.tensor), _bits(tensor))


@pytest.mark.parametrize("tag", [0, -1, 2**62])
def test_tag_arrives_as_it_was(ends: tuple[Sender, Receiver], tag: int) -> None:
    sender, receiver = ends

    sender.send(tag, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)

    assert receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag == tag


def test_sent_tensor_may_be_overwritten(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    tensor = torch.ones(100)

    sender.send(0, tensor, timeout_seconds=TIMEOUT_SECONDS)
    tensor.zero_()

    assert int(receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tensor.sum()) == 100


def test_received_tensor_is_the_receivers_own(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    sender.send(0, torch.zeros(10), timeout_seconds=TIMEOUT_SECONDS)
    first = receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tensor

    for tag in range(2 * OPTIONS.num_slots):
        sender.send(tag, torch.ones(10), timeout_seconds=TIMEOUT_SECONDS)
        receiver.recv(timeout_seconds=TIMEOUT_SECONDS)

    assert int(first.sum()) == 0


def test_receiver_that_is_behind_holds_its_sender_back(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    for tag in range(OPTIONS.num_slots):
        sender.send(tag, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)

    with pytest.raises(TransportTimeout):
        sender.send(99, torch.zeros(1), timeout_seconds=SHORT_SECONDS)
    receiver.recv(timeout_seconds=TIMEOUT_SECONDS)
    sender.send(OPTIONS.num_slots, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)

    tags = [receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag for _ in range(OPTIONS.num_slots)]
    assert tags == list(range(1, OPTIONS.num_slots + 1))


def test_largest_message_passes_and_a_larger_one_is_refused(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    sender.send(1, torch.zeros(OPTIONS.max_message_bytes, dtype=torch.uint8), timeout_seconds=TIMEOUT_SECONDS)

    with pytest.raises(TransportError, match=str(OPTIONS.max_message_bytes + 1)):
        sender.send(2, torch.zeros(OPTIONS.max_message_bytes + 1, dtype=torch.uint8), timeout_seconds=SHORT_SECONDS)

    sender.send(3, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)
    assert [receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag for _ in range(2)] == [1, 3]


def test_receiver_waits_no_longer_than_it_is_told(ends: tuple[Sender, Receiver]) -> None:
    with pytest.raises(TransportTimeout):
        ends[1].recv(timeout_seconds=SHORT_SECONDS)


def test_receiver_without_a_sender_times_out(transport: Transport, address: str) -> None:
    receiver = transport.listen(address, OPTIONS)

    with pytest.raises(TransportTimeout):
        receiver.recv(timeout_seconds=SHORT_SECONDS)

    receiver.close()


def test_connecting_where_nobody_listens_times_out(transport: Transport, address: str) -> None:
    with pytest.raises(TransportTimeout, match="0-1"):
        transport.connect(address, OPTIONS, timeout_seconds=SHORT_SECONDS)


def test_sender_waits_for_its_receiver_to_appear(transport: Transport, address: str) -> None:
    listening: list[Receiver] = []
    timer = threading.Timer(0.1, lambda: listening.append(transport.listen(address, OPTIONS)))
    timer.start()

    sender = transport.connect(address, OPTIONS, timeout_seconds=TIMEOUT_SECONDS)
    sender.send(1, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)
    timer.join()

    assert listening[0].recv(timeout_seconds=TIMEOUT_SECONDS).tag == 1
    sender.close()
    listening[0].close()


def test_address_that_is_listened_on_is_refused(transport: Transport, address: str) -> None:
    receiver = transport.listen(address, OPTIONS)

    with pytest.raises(TransportError, match="listened on"):
        transport.listen(address, OPTIONS)

    sender = transport.connect(address, OPTIONS, timeout_seconds=TIMEOUT_SECONDS)
    sender.send(1, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)
    assert receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag == 1
    sender.close()
    receiver.close()


def test_what_a_closed_sender_sent_is_still_received_and_then_its_end(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    for tag in range(2):
        sender.send(tag, torch.zeros(4), timeout_seconds=TIMEOUT_SECONDS)
    sender.close()

    assert [receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(PeerLost):
            receiver.recv(timeout_seconds=TIMEOUT_SECONDS)


def test_sender_of_a_closed_receiver_is_told(ends: tuple[Sender, Receiver]) -> None:
    sender, receiver = ends
    sender.send(0, torch.zeros(4), timeout_seconds=TIMEOUT_SECONDS)
    receiver.recv(timeout_seconds=TIMEOUT_SECONDS)
    receiver.close()

    with pytest.raises(PeerLost):
        sender.send(1, torch.zeros(4), timeout_seconds=TIMEOUT_SECONDS)


@pytest.mark.parametrize("waits_for", ["message", "slot"])
def test_peer_that_closes_wakes_the_one_who_waits(ends: tuple[Sender, Receiver], waits_for: str) -> None:
    sender, receiver = ends
    if waits_for == "slot":
        for tag in range(OPTIONS.num_slots):
            sender.send(tag, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)
    closing = receiver.close if waits_for == "slot" else sender.close
    waiting: Callable[[], object] = (
        (lambda: sender.send(9, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS))
        if waits_for == "slot"
        else (lambda: receiver.recv(timeout_seconds=TIMEOUT_SECONDS))
    )
    timer = threading.Timer(SHORT_SECONDS, closing)
    timer.start()

    with pytest.raises(PeerLost):
        waiting()

    timer.join()


def test_closed_ends_refuse_and_may_be_closed_again(ends: tuple[Sender, Receiver]) -> None:
    for end in ends:
        end.close()
        end.close()

    with pytest.raises(TransportError):
        ends[0].send(0, torch.zeros(1), timeout_seconds=SHORT_SECONDS)
    with pytest.raises(TransportError):
        ends[1].recv(timeout_seconds=SHORT_SECONDS)


def test_closing_leaves_no_file_and_the_address_serves_again(transport: Transport, address: str) -> None:
    for _ in range(2):
        receiver = transport.listen(address, OPTIONS)
        sender = transport.connect(address, OPTIONS, timeout_seconds=TIMEOUT_SECONDS)
        sender.send(0, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)
        assert receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag == 0
        sender.close()
        receiver.close()

    assert list(Path(address).parent.iterdir()) == []


def test_slots_of_both_ends_bound_what_is_in_flight(transport: Transport, address: str) -> None:
    single = TransportOptions(max_message_bytes=16, num_slots=1)
    receiver = transport.listen(address, single)
    sender = transport.connect(address, single, timeout_seconds=TIMEOUT_SECONDS)
    sender.send(0, torch.zeros(1), timeout_seconds=TIMEOUT_SECONDS)

    with pytest.raises(TransportTimeout):
        sender.send(1, torch.zeros(1), timeout_seconds=SHORT_SECONDS)

    sender.close()
    receiver.close()


def test_stream_between_threads_arrives_whole_and_in_order(transport: Transport, address: str) -> None:
    receiver = transport.listen(address, OPTIONS)
    thread = threading.Thread(target=send_messages, args=(transport, address, 200, 0.0))
    thread.start()

    for index in range(200):
        message = receiver.recv(timeout_seconds=TIMEOUT_SECONDS)
        assert message.tag == index
        assert torch.equal(message.tensor, expected_message(index))

    thread.join()
    receiver.close()


def test_two_connections_do_not_mix(transport: Transport, address: str) -> None:
    threads = [
        threading.Thread(target=recv_messages, args=(transport, f"{address}-{index}", 50, 0.0)) for index in range(2)
    ]
    for thread in threads:
        thread.start()

    for index in range(2):
        send_messages(transport, f"{address}-{index}", 50, 0.0)
    for thread in threads:
        thread.join(TIMEOUT_SECONDS)

    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def peer() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, direction: str, address: str, num_messages: int, linger_seconds: float):
        command = [sys.executable, "-m", "tests.conformance.transport_peer", name, direction, address]
        started.append(subprocess.Popen([*command, str(num_messages), str(linger_seconds)]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", BETWEEN_PROCESSES)
def test_stream_from_another_process_arrives_whole_and_in_order(name: str, address: str, peer) -> None:
    receiver = TRANSPORTS[name].listen(address, OPTIONS)
    process = peer(name, "send", address, 100, 0.0)

    for index in range(100):
        message = receiver.recv(timeout_seconds=TIMEOUT_SECONDS)
        assert message.tag == index
        assert torch.equal(message.tensor, expected_message(index))
    with pytest.raises(PeerLost):
        receiver.recv(timeout_seconds=TIMEOUT_SECONDS)

    assert process.wait(TIMEOUT_SECONDS) == 0
    receiver.close()


@pytest.mark.parametrize("name", BETWEEN_PROCESSES)
def test_killed_sender_is_lost_at_once_and_what_it_sent_is_not(name: str, address: str, peer) -> None:
    receiver = TRANSPORTS[name].listen(address, OPTIONS)
    process = peer(name, "send", address, 2, 600.0)
    assert receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag == 0

    threading.Timer(0.2, process.kill).start()

    assert torch.equal(receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tensor, expected_message(1))
    with pytest.raises(PeerLost):
        receiver.recv(timeout_seconds=TIMEOUT_SECONDS)
    receiver.close()


def _send_until_refused(sender: Sender, num_messages: int) -> None:
    for tag in range(1, 1 + num_messages):
        sender.send(tag, expected_message(0), timeout_seconds=TIMEOUT_SECONDS)


@pytest.mark.parametrize("name", BETWEEN_PROCESSES)
def test_killed_receiver_is_lost_at_once_and_its_address_serves_again(name: str, address: str, peer) -> None:
    process = peer(name, "recv", address, 1, 600.0)
    sender = TRANSPORTS[name].connect(address, OPTIONS, timeout_seconds=TIMEOUT_SECONDS)
    sender.send(0, expected_message(0), timeout_seconds=TIMEOUT_SECONDS)

    threading.Timer(0.2, process.kill).start()
    with pytest.raises(PeerLost):
        _send_until_refused(sender, 1 + OPTIONS.num_slots)

    TRANSPORTS[name].listen(address, OPTIONS).close()
    sender.close()
