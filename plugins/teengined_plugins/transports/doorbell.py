"""The Unix socket beside a shared-memory ring: its file, its connecting and waiting. Knows nothing of tensors."""

import os
import select
import socket
import stat
import time
from pathlib import Path

from teengined.core.errors import TransportError, TransportTimeout
from teengined_plugins.transports.deadline import Deadline
from teengined_plugins.transports.packets import PACKET_BYTES

__all__ = ["connect_to", "new_socket", "read_packet", "remove_stale", "socket_path", "wait_readable"]

# The kernel's limit for a socket's path is 108 bytes with the final zero.
_MAX_PATH_BYTES = 107
_CONNECT_RETRY_SECONDS = 0.005


def socket_path(address: str) -> Path:
    """Return the socket's path for an address; TransportError where the system has no room for it."""
    path = Path(f"{address}.sock")
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise TransportError(
            f"the socket path {path} exceeds the system's {_MAX_PATH_BYTES} bytes",
            hint="choose a runtime directory with a shorter path",
        )
    return path


def new_socket() -> socket.socket:
    """Return an unbound, non-blocking socket that keeps packets apart."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more; TransportError where somebody does."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise TransportError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with new_socket() as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its queue is full, so it lives
    raise TransportError(f"{path} is listened on already")


def connect_to(path: Path, deadline: Deadline) -> socket.socket:
    """Return a connection to the listener at `path`, waiting for it to appear; TransportTimeout where none does."""
    while True:
        connection = new_socket()
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
            connection.close()
            if not deadline.left_seconds():
                raise TransportTimeout(f"nobody listened on {path} within {deadline.timeout_seconds:g} s") from error
            time.sleep(min(_CONNECT_RETRY_SECONDS, deadline.left_seconds()))
        except OSError as error:
            connection.close()
            raise TransportError(f"cannot connect to {path}: {error}") from error


def read_packet(connection: socket.socket) -> bytes | None:
    """Return the next packet, empty where the other end hung up, None where there is none yet."""
    for _ in range(2):
        try:
            return connection.recv(PACKET_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            continue  # reported once, before the packets that are still queued
    return b""


def wait_readable(waited: socket.socket, deadline: Deadline) -> bool:
    """Wait until there is something to read, or an end; False where the deadline came first."""
    poller = select.poll()
    poller.register(waited, select.POLLIN)
    return bool(poller.poll(deadline.left_milliseconds()))
