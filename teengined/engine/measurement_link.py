"""One end of a link that is measured, in a process of its own: `python -m teengined.engine.measurement_link`.

Request: {"device": DeviceSpec, "transport", "listen", "connect", "leads": bool}. The leading end sends messages that
the other sends back, and answers `done` with latency and bandwidth: time of a message = latency + bytes / bandwidth.
"""

import statistics
import sys
import time

import torch

from teengined.core.device import DeviceSpec
from teengined.core.errors import PeerLost
from teengined.core.records import from_mapping
from teengined.engine.measurement_process import Event, emit, serve_request
from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.transport import Receiver, Sender, TransportOptions

__all__ = ["main"]

# One decode activation of a middling model, and a prefill chunk of it.
_SMALL_BYTES, _LARGE_BYTES = 8 << 10, 4 << 20
_NUM_SMALL, _NUM_LARGE = 200, 20
_TIMEOUT_SECONDS = 30.0


def main() -> int:
    """Answer one request."""
    return serve_request(_answer)


def _answer(request: Event) -> None:
    registry = PluginRegistry.load()
    spec = from_mapping(DeviceSpec, request["device"])
    transport = registry.transport(request["transport"])
    options = TransportOptions(max_message_bytes=_LARGE_BYTES)
    with registry.driver(spec.driver).open(spec):  # bound to its cores and threads, as a worker would be
        receiver = transport.listen(request["listen"], options)
        sender = transport.connect(request["connect"], options, timeout_seconds=_TIMEOUT_SECONDS)
        try:
            if request["leads"]:
                _lead(sender, receiver)
            else:
                _echo(sender, receiver)
        finally:
            sender.close()
            receiver.close()


def _lead(sender: Sender, receiver: Receiver) -> None:
    small = _one_way_seconds(sender, receiver, _SMALL_BYTES, _NUM_SMALL)
    large = _one_way_seconds(sender, receiver, _LARGE_BYTES, _NUM_LARGE)
    bytes_per_second = (_LARGE_BYTES - _SMALL_BYTES) / max(large - small, 1e-9)
    latency_seconds = max(0.0, small - _SMALL_BYTES / bytes_per_second)
    emit("done", latency_seconds=latency_seconds, bytes_per_second=bytes_per_second)


def _one_way_seconds(sender: Sender, receiver: Receiver, num_bytes: int, num_messages: int) -> float:
    """Return half the median time of a message there and back."""
    message = torch.ones(num_bytes, dtype=torch.uint8)
    seconds: list[float] = []
    for tag in range(num_messages):
        start = time.perf_counter()
        sender.send(tag, message, timeout_seconds=_TIMEOUT_SECONDS)
        receiver.recv(timeout_seconds=_TIMEOUT_SECONDS)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[num_messages // 10 :]) / 2


def _echo(sender: Sender, receiver: Receiver) -> None:
    try:
        while True:
            activation = receiver.recv(timeout_seconds=_TIMEOUT_SECONDS)
            sender.send(activation.tag, activation.tensor, timeout_seconds=_TIMEOUT_SECONDS)
    except PeerLost:
        emit("done")


if __name__ == "__main__":
    sys.exit(main())
