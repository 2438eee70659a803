"""Activations between threads of one process, through a bounded queue. For tests, and for stages of one worker."""

import threading
from collections import deque
from typing import TYPE_CHECKING

from teengined.core.errors import PeerLost, TransportError, TransportTimeout
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.transport import Activation, Receiver, Sender, Transport, TransportOptions
from teengined_plugins.transports.deadline import Deadline

if TYPE_CHECKING:
    import torch

__all__ = ["InprocTransport"]


class _Channel:
    """A queue with two ends, either of which may be closed. `changed` guards all of it."""

    def __init__(self, options: TransportOptions) -> None:
        self.options = options
        self.changed = threading.Condition()
        self.messages: deque[Activation] = deque()
        self.has_sender = False
        self.sender_closed = False
        self.receiver_closed = False


class _Addresses:
    """The addresses of this process, as a file system is for processes of a host."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.channels: dict[str, _Channel] = {}


_ADDRESSES = _Addresses()


class InprocTransport(Transport):
    """Connects threads by name."""

    name = "inproc"
    reach = "process"

    def listen(self, address: str, options: TransportOptions) -> Receiver:
        """Claim `address` in this process; TransportError where it is taken."""
        with _ADDRESSES.changed:
            if address in _ADDRESSES.channels:
                raise TransportError(f"{address} is listened on already")
            channel = _ADDRESSES.channels[address] = _Channel(options)
            _ADDRESSES.changed.notify_all()
        return _InprocReceiver(address, channel)

    def connect(self, address: str, options: TransportOptions, *, timeout_seconds: float) -> Sender:
        """Take the sending end of `address`; it has one."""
        with _ADDRESSES.changed:
            if not _ADDRESSES.changed.wait_for(lambda: address in _ADDRESSES.channels, timeout_seconds):
                raise TransportTimeout(f"nobody listened on {address} within {timeout_seconds:g} s")
            channel = _ADDRESSES.channels[address]
            if channel.has_sender:
                raise TransportError(f"{address} has a sender already")
            channel.has_sender = True
        return _InprocSender(channel, options)


class _InprocSender(Sender):
    def __init__(self, channel: _Channel, options: TransportOptions) -> None:
        self._channel = channel
        self._options = options

    def send(self, tag: int, tensor: "torch.Tensor", *, timeout_seconds: float) -> None:
        """Queue a copy."""
        if tensor.nbytes > self._options.max_message_bytes:
            raise TransportError(
                f"an activation of {tensor.nbytes} bytes exceeds the connection's {self._options.max_message_bytes}"
            )
        channel, deadline = self._channel, Deadline(timeout_seconds)
        with channel.changed:
            self._wait_for_slot(channel, deadline)
            # The copy is made under the lock: only the receiver waits, and it waits for this message.
            message = Activation(tag=tag, tensor=tensor.detach().to("cpu", copy=True).contiguous())
            channel.messages.append(message)
            channel.changed.notify_all()

    def _wait_for_slot(self, channel: _Channel, deadline: Deadline) -> None:
        if channel.sender_closed:
            raise TransportError("this end is closed")
        num_slots = min(self._options.num_slots, channel.options.num_slots)
        channel.changed.wait_for(
            lambda: channel.receiver_closed or len(channel.messages) < num_slots, deadline.left_seconds()
        )
        if channel.receiver_closed:
            raise PeerLost("the receiver is gone")
        if len(channel.messages) >= num_slots:
            raise TransportTimeout(f"the receiver freed no slot within {deadline.timeout_seconds:g} s")

    def close(self) -> None:
        """Tell the receiver that nothing more comes."""
        with self._channel.changed:
            self._channel.sender_closed = True
            self._channel.changed.notify_all()


class _InprocReceiver(Receiver):
    def __init__(self, address: str, channel: _Channel) -> None:
        self._address = address
        self._channel = channel

    def recv(self, *, timeout_seconds: float) -> Activation:
        """Take the oldest message."""
        channel = self._channel
        with channel.changed:
            if channel.receiver_closed:
                raise TransportError("this end is closed")
            channel.changed.wait_for(lambda: bool(channel.messages) or channel.sender_closed, timeout_seconds)
            if channel.messages:
                message = channel.messages.popleft()
                channel.changed.notify_all()
                return message
            if channel.sender_closed:
                raise PeerLost("the sender is gone")
        raise TransportTimeout(f"nothing came on {self._address} within {timeout_seconds:g} s")

    def close(self) -> None:
        """Drop what was not taken and free the address."""
        with _ADDRESSES.changed:
            if _ADDRESSES.channels.get(self._address) is self._channel:
                del _ADDRESSES.channels[self._address]
        with self._channel.changed:
            self._channel.receiver_closed = True
            self._channel.messages.clear()
            self._channel.changed.notify_all()


@hookimpl
def teengine_register_transports() -> list[type[Transport]]:
    """Return the in-process transport."""
    return [InprocTransport]
