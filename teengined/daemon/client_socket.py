"""The socket that clients connect to: bound here, or handed over by systemd as it was before the daemon started."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from teengined.client.endpoint import SOCKET_NAME, endpoint_of
from teengined.core.errors import ConfigError
from teengined.service.settings import Config

__all__ = ["ClientSocket", "bind_client_socket", "inherited_socket"]

_FIRST_INHERITED_FD = 3
# A request up to this many times too large is read and refused with an error. Beyond, ZeroMQ drops the connection.
_REFUSAL_FACTOR = 4
_LINGER_MILLISECONDS = 500
_BACKLOG = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSocket:
    """The listening ROUTER socket."""

    router: Any
    endpoint: str
    file: Path | None
    """The socket's file where this process made it; systemd keeps its own."""

    def close(self) -> None:
        """Stop listening, giving last replies a moment to leave."""
        self.router.close()
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def bind_client_socket(
    context: zmq.asyncio.Context, config: Config, runtime_dir: Path, environment: Mapping[str, str]
) -> ClientSocket:
    """Return the listening socket. The caller holds the lock of `runtime_dir`.

    Raises:
        ConfigError: the path is too long or cannot be bound, or systemd handed over something else.
    """
    router: Any = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.SNDHWM, config.protocol.send_queue)
    router.setsockopt(zmq.RCVHWM, config.protocol.receive_queue)
    router.setsockopt(zmq.MAXMSGSIZE, _REFUSAL_FACTOR * config.protocol.max_message)
    router.setsockopt(zmq.LINGER, _LINGER_MILLISECONDS)
    router.setsockopt(zmq.BACKLOG, _BACKLOG)
    try:
        inherited = inherited_socket(environment)
        if inherited is not None:
            return _take_over(router, *inherited)
        return _bind(router, config.daemon.socket_mode, runtime_dir / SOCKET_NAME)
    except BaseException:
        router.close()
        raise


def _take_over(router: Any, fd: int, path: str) -> ClientSocket:
    endpoint = endpoint_of(f"ipc://{path}")
    router.setsockopt(zmq.USE_FD, os.dup(fd))  # ZeroMQ closes what it is given; systemd's own stays open.
    router.bind(endpoint)
    return ClientSocket(router=router, endpoint=endpoint, file=None)


def _bind(router: Any, mode: int, path: Path) -> ClientSocket:
    endpoint = endpoint_of(f"ipc://{path}")
    path.unlink(missing_ok=True)  # Left by a daemon that was killed: the lock says that it is gone.
    before = os.umask(0o777 & ~mode)
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror}", hint="choose another --runtime-dir") from error
    finally:
        os.umask(before)
    return ClientSocket(router=router, endpoint=endpoint, file=path)


def inherited_socket(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """Return descriptor and path of the socket that systemd passed to this process, or None.

    Raises:
        ConfigError: it passed several, or one that is no listening unix socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS", "0") == "0":
        return None
    hint = "teengined.socket needs exactly one ListenStream=, the path of a socket"
    if environment["LISTEN_FDS"] != "1":
        raise ConfigError(f"systemd passed {environment['LISTEN_FDS']} sockets instead of one", hint=hint)
    try:
        with socket.socket(fileno=os.dup(_FIRST_INHERITED_FD)) as passed:
            is_unix = passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM
            listening = bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            path = passed.getsockname() if is_unix and listening else ""
    except OSError as error:
        raise ConfigError(f"the descriptor that systemd passed is no socket: {error.strerror}", hint=hint) from error
    if not path:
        raise ConfigError("systemd passed a descriptor that is no listening unix socket", hint=hint)
    return _FIRST_INHERITED_FD, path
