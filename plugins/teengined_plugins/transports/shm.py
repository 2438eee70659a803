"""Between processes of one host: activations in shared memory, doorbells and credits over a unix socket.

The sender makes an anonymous memory file of `num_slots` slots, seals its size and passes it over the socket, so nothing
of it has a name that could be left behind. One copy in at the sender, one copy out at the receiver.

    sender                                receiver
    memory file ───────────────────────►  mapped, its size and seals checked
    (slot, tag, dtype, shape)  ────────►  copies the slot out
    waits when no slot is free  ◄───────  (slot) is free again

The socket is SOCK_SEQPACKET: messages arrive whole, and the end of a peer, however it ends, is an end of file.
"""

import contextlib
import os
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from teengined.core.errors import PeerLost, TransportError, TransportTimeout
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.transport import Activation, Receiver, Sender, Transport, TransportOptions
from teengined_plugins.transports.shm_slots import SLOT_CREDIT, Doorbell, SharedSlots

if TYPE_CHECKING:
    import torch

__all__ = ["Shm", "teengine_register_transports"]

_RETRY_SECONDS = 0.01
_MAX_DOORBELL_BYTES = 4096


class _ShmSender(Sender):
    def __init__(self, connection: socket.socket, options: TransportOptions) -> None:
        self._connection = connection
        self._slots = SharedSlots.create(options)
        self._free = list(range(options.num_slots))
        socket.send_fds(connection, [b"slots"], [self._slots.descriptor])

    def send(self, tag: int, tensor: "torch.Tensor", *, timeout_seconds: float) -> None:
        if tensor.nbytes > self._slots.slot_bytes:
            raise TransportError(f"an activation of {tensor.nbytes} bytes; at most {self._slots.slot_bytes}")
        slot = self._take_slot(time.monotonic() + timeout_seconds, timeout_seconds)
        doorbell = self._slots.write(slot, tag, tensor)
        try:
            self._connection.send(doorbell.pack())
        except OSError as error:
            raise PeerLost("the receiving stage is gone") from error

    def close(self) -> None:
        self._connection.close()
        self._slots.close()

    def _take_slot(self, deadline: float, timeout_seconds: float) -> int:
        while True:
            self._collect_credits(0.0 if self._free else max(0.0, deadline - time.monotonic()))
            if self._free:
                return self._free.pop()
            if time.monotonic() >= deadline:
                raise TransportTimeout(f"the receiving stage took nothing for {timeout_seconds:g} s")

    def _collect_credits(self, wait_seconds: float) -> None:
        while _is_readable(self._connection, wait_seconds):
            try:
                message = self._connection.recv(SLOT_CREDIT.size)
            except OSError as error:
                raise PeerLost("the receiving stage is gone") from error
            if not message:
                raise PeerLost("the receiving stage is gone")
            self._free.append(SLOT_CREDIT.unpack(message)[0])
            wait_seconds = 0.0


class _ShmReceiver(Receiver):
    def __init__(self, address: Path, options: TransportOptions) -> None:
        self._address = address
        self._options = options
        self._connection: socket.socket | None = None
        self._slots: SharedSlots | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address.unlink(missing_ok=True)  # of an owner that was killed
        before = os.umask(0o177)
        try:
            self._listener.bind(str(address))
        except OSError as error:
            self._listener.close()
            raise TransportError(f"cannot listen at {address}: {error.strerror}") from error
        finally:
            os.umask(before)
        self._listener.listen(1)

    def recv(self, *, timeout_seconds: float) -> Activation:
        deadline = time.monotonic() + timeout_seconds
        connection, slots = self._accepted(deadline, timeout_seconds)
        if not _is_readable(connection, max(0.0, deadline - time.monotonic())):
            raise TransportTimeout(f"no activation came for {timeout_seconds:g} s")
        try:
            message = connection.recv(_MAX_DOORBELL_BYTES)
        except OSError as error:
            raise PeerLost("the sending stage is gone") from error
        if not message:
            raise PeerLost("the sending stage is gone")
        doorbell = Doorbell.unpack(message)
        activation = Activation(tag=doorbell.tag, tensor=slots.read(doorbell))
        with contextlib.suppress(OSError):  # a sender that closed after its last message needs no credit
            connection.send(SLOT_CREDIT.pack(doorbell.slot))
        return activation

    def close(self) -> None:
        self._listener.close()
        self._address.unlink(missing_ok=True)
        if self._connection is not None:
            self._connection.close()
        if self._slots is not None:
            self._slots.close()

    def _accepted(self, deadline: float, timeout_seconds: float) -> tuple[socket.socket, SharedSlots]:
        if self._connection is None or self._slots is None:
            if not _is_readable(self._listener, max(0.0, deadline - time.monotonic())):
                raise TransportTimeout(f"no sender came to {self._address.name} for {timeout_seconds:g} s")
            self._connection, _ = self._listener.accept()
            if not _is_readable(self._connection, max(0.0, deadline - time.monotonic())):
                raise TransportTimeout(f"the sender at {self._address.name} sent no memory in {timeout_seconds:g} s")
            message, descriptors, _, _ = socket.recv_fds(self._connection, 16, 1)
            if not message or len(descriptors) != 1:
                raise PeerLost("the sending stage is gone")
            self._slots = SharedSlots.receive(descriptors[0], self._options)
        return self._connection, self._slots


class Shm(Transport):
    """Addresses are socket paths in a private directory."""

    name = "shm"
    reach = "host"

    def listen(self, address: str, options: TransportOptions) -> Receiver:
        """Bind the socket, readable by this user only."""
        return _ShmReceiver(Path(address), options)

    def connect(self, address: str, options: TransportOptions, *, timeout_seconds: float) -> Sender:
        """Connect as soon as the socket is there."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(address)
                return _ShmSender(connection, options)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                connection.close()
                if time.monotonic() >= deadline:
                    raise TransportTimeout(f"nobody listened at {address} for {timeout_seconds:g} s") from error
            except OSError as error:
                connection.close()
                raise TransportError(f"cannot connect to {address}: {error}") from error
            time.sleep(_RETRY_SECONDS)


def _is_readable(connection: socket.socket, wait_seconds: float) -> bool:
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(wait_seconds * 1000))


@hookimpl
def teengine_register_transports() -> list[type[Transport]]:
    """Return the transport."""
    return [Shm]
