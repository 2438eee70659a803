"""Where the daemon listens, and a quick honest answer to whether anyone is there."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from teengined.core.errors import ConfigError, DaemonUnreachable

__all__ = [
    "MAX_SOCKET_PATH_BYTES",
    "SOCKET_NAME",
    "SYSTEM_RUNTIME_DIR",
    "default_endpoint",
    "default_runtime_dir",
    "endpoint_of",
    "probe",
]

SYSTEM_RUNTIME_DIR = Path("/run/teengined")
SOCKET_NAME = "teengined.sock"
# sun_path of unix(7) holds 108 bytes with its final zero.
MAX_SOCKET_PATH_BYTES = 107
_START_HINT = "start it with `systemctl start teengined`, or run `teengined` in a terminal"


def default_runtime_dir(environment: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """Return the directory of the daemon that this user would run: the system's for root, a private one otherwise."""
    user = os.getuid() if uid is None else uid
    if user == 0:
        return SYSTEM_RUNTIME_DIR
    session = environment.get("XDG_RUNTIME_DIR")
    return Path(session) / "teengined" if session else Path(f"/tmp/teengined-{user}")  # noqa: S108 - made 0750, owner checked


def default_endpoint(environment: Mapping[str, str] = os.environ) -> str:
    """Return `TEENGINE_HOST`, else the user's own daemon, else the system's where only that one exists.

    Raises:
        ConfigError: `TEENGINE_HOST` is no local address.
    """
    if named := environment.get("TEENGINE_HOST"):
        return endpoint_of(named)
    own, system = default_runtime_dir(environment) / SOCKET_NAME, SYSTEM_RUNTIME_DIR / SOCKET_NAME
    return f"ipc://{system if system.exists() and not own.exists() else own}"


def endpoint_of(address: str) -> str:
    """Return the ZeroMQ endpoint for `ipc://PATH`, `unix://PATH`, a socket's path, or a runtime directory's path.

    Raises:
        ConfigError: anything else, or a path too long for a socket.
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme not in ("ipc", "unix"):
        raise ConfigError(
            f"{address!r} is not an address of a daemon on this host",
            hint=f"use ipc:///run/teengined/{SOCKET_NAME}, or the path of the socket",
        )
    path = Path(rest if separator else address).absolute()
    if path.is_dir():
        path /= SOCKET_NAME
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the socket path {path} has more than {MAX_SOCKET_PATH_BYTES} bytes, which is all the kernel takes",
            hint="choose a runtime directory with a shorter name (--runtime-dir)",
        )
    return f"ipc://{path}"


def probe(endpoint: str) -> None:
    """Return at once if something accepts connections at `endpoint`.

    Raises:
        DaemonUnreachable: nothing there, nobody accepting, or no right to connect; says which.
    """
    path = endpoint.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(path)
        except BlockingIOError:
            return  # The backlog is full: alive and busy.
        except PermissionError as error:
            hint = "join the socket's group: `sudo usermod -aG teengined $USER`, then log in again"
            raise DaemonUnreachable(f"no permission to connect to {path}", hint=hint) from error
        except FileNotFoundError as error:
            raise DaemonUnreachable(f"no daemon is running (no socket at {path})", hint=_START_HINT) from error
        except OSError as error:
            raise DaemonUnreachable(f"no daemon answers at {path}: {error.strerror}", hint=_START_HINT) from error
