"""Between threads of one process: a bounded queue. For tests, and for stages that share a process."""

import collections
import threading
import time
from typing import TYPE_CHECKING, ClassVar

from teengined.core.errors import PeerLost, TransportError, TransportTimeout
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.transport import Activation, Receiver, Sender, Transport, TransportOptions

if TYPE_CHECKING:
    import torch

__all__ = ["Inproc", "teengine_register_transports"]


class _Channel:
    """What both ends share. Every change wakes every waiter."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.messages: collections.deque[Activation] = collections.deque()
        self.changed = threading.Condition()
        self.is_connected = False
        self.is_sender_gone = False
        self.is_receiver_gone = False


class _InprocSender(Sender):
    def __init__(self, channel: _Channel, options: TransportOptions) -> None:
        self._channel = channel
        self._options = options

    def send(self, tag: int, tensor: "torch.Tensor", *, timeout_seconds: float) -> None:
        if tensor.nbytes > self._options.max_message_bytes:
            raise TransportError(f"an activation of {tensor.nbytes} bytes; at most {self._options.max_message_bytes}")
        channel = self._channel
        with channel.changed:
            channel.changed.wait_for(
                lambda: channel.is_receiver_gone or len(channel.messages) < channel.num_slots, timeout_seconds
            )
            if channel.is_receiver_gone:
                raise PeerLost("the receiving stage is gone")
            if len(channel.messages) >= channel.num_slots:
                raise TransportTimeout(f"the receiving stage took nothing for {timeout_seconds:g} s")
            channel.messages.append(Activation(tag=tag, tensor=tensor.detach().clone()))
            channel.changed.notify_all()

    def close(self) -> None:
        with self._channel.changed:
            self._channel.is_sender_gone = True
            self._channel.changed.notify_all()


class _InprocReceiver(Receiver):
    def __init__(self, transport: "Inproc", address: str, channel: _Channel) -> None:
        self._transport = transport
        self._address = address
        self._channel = channel

    def recv(self, *, timeout_seconds: float) -> Activation:
        channel = self._channel
        with channel.changed:
            channel.changed.wait_for(lambda: channel.messages or channel.is_sender_gone, timeout_seconds)
            if channel.messages:
                message = channel.messages.popleft()
                channel.changed.notify_all()
                return message
            if channel.is_sender_gone:
                raise PeerLost("the sending stage is gone")
        raise TransportTimeout(f"no activation came for {timeout_seconds:g} s")

    def close(self) -> None:
        self._transport.forget(self._address, self._channel)
        with self._channel.changed:
            self._channel.is_receiver_gone = True
            self._channel.changed.notify_all()


class Inproc(Transport):
    """Addresses are names within this process."""

    name = "inproc"
    reach = "process"

    # Of the class, since every registry makes an instance of its own and both ends must meet.
    _listening = threading.Condition()
    _by_address: ClassVar[dict[str, _Channel]] = {}

    def listen(self, address: str, options: TransportOptions) -> Receiver:
        """Offer a channel under `address`; one that was there is replaced."""
        channel = _Channel(options.num_slots)
        with self._listening:
            self._by_address[address] = channel
            self._listening.notify_all()
        return _InprocReceiver(self, address, channel)

    def connect(self, address: str, options: TransportOptions, *, timeout_seconds: float) -> Sender:
        """Take the sending end of the channel under `address`."""
        deadline = time.monotonic() + timeout_seconds
        with self._listening:
            while True:
                channel = self._by_address.get(address)
                if channel is not None and not channel.is_connected:
                    channel.is_connected = True
                    return _InprocSender(channel, options)
                if not self._listening.wait(max(0.0, deadline - time.monotonic())):
                    raise TransportTimeout(f"nobody listened at {address} for {timeout_seconds:g} s")

    def forget(self, address: str, channel: _Channel) -> None:
        """Remove a closed receiver's address, unless another took it over."""
        with self._listening:
            if self._by_address.get(address) is channel:
                del self._by_address[address]


@hookimpl
def teengine_register_transports() -> list[type[Transport]]:
    """Return the transport."""
    return [Inproc]
