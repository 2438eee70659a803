"""Activations between processes of one host: a ring of shared memory, and a socket beside it that rings and counts.

    sender                                   receiver
      │  wait for a free slot                   │
      ├─ copy in ──► slot ──► doorbell ────────►│  header checked, copy out
      │◄──────────────────────── credit ────────┤  the slot is free again

A message is copied once on each side and never passes through the socket. When a process dies the kernel closes its
socket, so that the other learns of it at once. The only thing with a name is the socket `ADDRESS.sock`, mode 0600; it
is removed when the sender has come.
"""

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from teengined.core.errors import PeerLost, TransportError, TransportTimeout
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.transport import Activation, Receiver, Sender, Transport, TransportOptions
from teengined_plugins.transports.deadline import Deadline
from teengined_plugins.transports.doorbell import (
    connect_to,
    new_socket,
    read_packet,
    remove_stale,
    socket_path,
    wait_readable,
)
from teengined_plugins.transports.packets import PACKET_BYTES, Greeting, SlotHeader
from teengined_plugins.transports.ring_memory import RingMemory, slot_bytes_for

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_SLOTS", "ShmTransport"]

# Doorbells and credits in flight must fit a socket's buffer, or a send could block where no deadline looks.
MAX_SLOTS = 64
_CREDIT = b"\x01"


class ShmTransport(Transport):
    """Connects processes of one host that can reach the same private directory."""

    name = "shm"
    reach = "host"

    def listen(self, address: str, options: TransportOptions) -> Receiver:
        """Bind `ADDRESS.sock`, in place of one that a dead process left; TransportError where a live one has it."""
        _check_options(options)
        path = socket_path(address)
        remove_stale(path)
        listener = new_socket()
        try:
            # Set before binding, so that at no moment anyone else can connect.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise TransportError(f"cannot listen on {path}: {error}") from error
        return _ShmReceiver(path, listener, options)

    def connect(self, address: str, options: TransportOptions, *, timeout_seconds: float) -> Sender:
        """Connect to the socket and hand the ring over. Does not wait for the receiver to call `recv`."""
        _check_options(options)
        connection = connect_to(socket_path(address), Deadline(timeout_seconds))
        slot_bytes = slot_bytes_for(options.max_message_bytes)
        try:
            ring, file = RingMemory.create(slot_bytes=slot_bytes, num_slots=options.num_slots)
        except TransportError:
            connection.close()
            raise
        try:
            greeting = Greeting(slot_bytes=slot_bytes, num_slots=options.num_slots)
            socket.send_fds(connection, [greeting.encode()], [file])
        except OSError as error:
            connection.close()
            ring.close()
            raise PeerLost(f"the receiver on {address} is gone: {error}") from error
        finally:
            os.close(file)
        return _ShmSender(connection, ring, options)


class _ShmSender(Sender):
    def __init__(self, connection: socket.socket, ring: RingMemory, options: TransportOptions) -> None:
        self._connection = connection
        self._ring = ring
        self._options = options
        self._num_sent = 0
        self._num_free = options.num_slots
        self._open = True

    def send(self, tag: int, tensor: "torch.Tensor", *, timeout_seconds: float) -> None:
        """Copy the tensor into the next slot and ring."""
        if not self._open:
            raise TransportError("this end is closed")
        if tensor.nbytes > self._options.max_message_bytes:
            raise TransportError(
                f"an activation of {tensor.nbytes} bytes exceeds the connection's {self._options.max_message_bytes}"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        header = SlotHeader.describe(dtype, tensor.shape, sequence=self._num_sent, tag=tag)
        self._wait_for_slot(Deadline(timeout_seconds))
        self._ring.write(header, tensor)
        try:
            self._connection.send(header.encode(), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PeerLost(f"the receiver is gone: {error}") from error
        self._num_sent += 1
        self._num_free -= 1

    def close(self) -> None:
        """Hang up; what was sent stays readable, since the receiver holds the ring too."""
        if self._open:
            self._open = False
            # A socket that is closed with credits unread resets the connection instead of ending it.
            with contextlib.suppress(PeerLost):
                self._take_credits()
            self._connection.close()
            self._ring.close()

    def _wait_for_slot(self, deadline: Deadline) -> None:
        self._take_credits()
        while self._num_free == 0:
            if not wait_readable(self._connection, deadline):
                raise TransportTimeout(f"the receiver freed no slot within {deadline.timeout_seconds:g} s")
            self._take_credits()

    def _take_credits(self) -> None:
        while (packet := read_packet(self._connection)) is not None:
            if not packet:
                raise PeerLost("the receiver is gone")
            if packet != _CREDIT or self._num_free == self._options.num_slots:
                raise TransportError("the receiver sent something that is no credit")
            self._num_free += 1


class _ShmReceiver(Receiver):
    def __init__(self, path: Path, listener: socket.socket, options: TransportOptions) -> None:
        self._path = path
        self._listener: socket.socket | None = listener
        self._connection: socket.socket | None = None
        self._ring: RingMemory | None = None
        self._options = options
        self._num_received = 0
        self._open = True

    def recv(self, *, timeout_seconds: float) -> Activation:
        """Wait for a doorbell and copy its slot out; the first call also lets the sender in."""
        if not self._open:
            raise TransportError("this end is closed")
        deadline = Deadline(timeout_seconds)
        connection, ring = self._connected(deadline)
        packet = self._next_packet(connection, deadline)
        header = SlotHeader.decode(
            packet, sequence=self._num_received, max_message_bytes=self._options.max_message_bytes
        )
        tensor = ring.read(header)
        self._num_received += 1
        # A sender that hung up needs no credit; what it sent before is still to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(_CREDIT, socket.MSG_NOSIGNAL)
        return Activation(tag=header.tag, tensor=tensor)

    def close(self) -> None:
        """Hang up and remove the socket's file if it is still there."""
        if self._open:
            self._open = False
            self._stop_listening()
            if self._connection is not None:
                self._connection.close()
            if self._ring is not None:
                self._ring.close()

    def _next_packet(self, connection: socket.socket, deadline: Deadline) -> bytes:
        while (packet := read_packet(connection)) is None:
            if not wait_readable(connection, deadline):
                raise TransportTimeout(f"nothing came on {self._path.name} within {deadline.timeout_seconds:g} s")
        if not packet:
            raise PeerLost("the sender is gone")
        return packet

    def _connected(self, deadline: Deadline) -> tuple[socket.socket, RingMemory]:
        while self._connection is None or self._ring is None:
            self._accept(deadline)
        return self._connection, self._ring

    def _accept(self, deadline: Deadline) -> None:
        assert self._listener is not None, "listening ends when a sender is connected"
        if not wait_readable(self._listener, deadline):
            raise TransportTimeout(f"no sender came to {self._path.name} within {deadline.timeout_seconds:g} s")
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        try:
            ring = _receive_ring(connection, self._options, deadline)
        except TransportError:
            connection.close()
            raise
        if ring is None:
            connection.close()  # somebody looked whether this address is alive
            return
        self._connection, self._ring = connection, ring
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._path.unlink(missing_ok=True)
            self._listener.close()
            self._listener = None


def _check_options(options: TransportOptions) -> None:
    if not 1 <= options.num_slots <= MAX_SLOTS:
        raise TransportError(f"a connection has 1 to {MAX_SLOTS} slots, not {options.num_slots}")
    if options.max_message_bytes < 1:
        raise TransportError(f"max_message_bytes must be at least 1, got {options.max_message_bytes}")


def _receive_ring(connection: socket.socket, options: TransportOptions, deadline: Deadline) -> RingMemory | None:
    """Return the ring that a new sender offers; None where it hung up without a word."""
    if not wait_readable(connection, deadline):
        raise TransportTimeout("a sender connected and did not introduce itself")
    try:
        packet, files, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    try:
        if not packet:
            return None
        greeting = Greeting.decode(packet)
        wanted = Greeting(slot_bytes=slot_bytes_for(options.max_message_bytes), num_slots=options.num_slots)
        if greeting != wanted or len(files) != 1:
            raise TransportError(
                f"the ends disagree: the sender has {greeting.num_slots} slots of {greeting.slot_bytes} bytes,"
                f" the receiver {wanted.num_slots} of {wanted.slot_bytes}"
            )
        return RingMemory.attach(files[0], slot_bytes=greeting.slot_bytes, num_slots=greeting.num_slots)
    finally:
        for file in files:
            os.close(file)


@hookimpl
def teengine_register_transports() -> list[type[Transport]]:
    """Return the shared-memory transport."""
    return [ShmTransport]
