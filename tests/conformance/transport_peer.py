"""The other end of a connection: a program for transports of reach `host` and `network`, a function for threads.

python -m tests.conformance.transport_peer TRANSPORT send|recv ADDRESS NUM_MESSAGES LINGER_SECONDS
"""

import sys
import time

import torch

from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.transport import Transport, TransportOptions

__all__ = ["OPTIONS", "expected_message", "recv_messages", "send_messages"]

OPTIONS = TransportOptions(max_message_bytes=64 * 1024, num_slots=3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8)
TIMEOUT_SECONDS = 30.0


def expected_message(index: int) -> torch.Tensor:
    """Return the `index`-th message, of changing dtype and shape."""
    shape = (1 + index % 7, 16 * (index % 5))
    values = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(index))
    return values.to(DTYPES[index % len(DTYPES)])


def send_messages(transport: Transport, address: str, num_messages: int, linger_seconds: float) -> None:
    """Connect, send messages 0, 1, …, stay a while, hang up."""
    sender = transport.connect(address, OPTIONS, timeout_seconds=TIMEOUT_SECONDS)
    for index in range(num_messages):
        sender.send(index, expected_message(index), timeout_seconds=TIMEOUT_SECONDS)
    time.sleep(linger_seconds)
    sender.close()


def recv_messages(transport: Transport, address: str, num_messages: int, linger_seconds: float) -> None:
    """Listen, take so many messages, stay a while, hang up."""
    receiver = transport.listen(address, OPTIONS)
    for index in range(num_messages):
        assert receiver.recv(timeout_seconds=TIMEOUT_SECONDS).tag == index
    time.sleep(linger_seconds)
    receiver.close()


if __name__ == "__main__":
    name, direction, address, num_messages, linger_seconds = sys.argv[1:]
    run = {"send": send_messages, "recv": recv_messages}[direction]
    run(PluginRegistry.load().transport(name), address, int(num_messages), float(linger_seconds))
