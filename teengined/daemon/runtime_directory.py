"""The runtime directory and the lock that makes its owner the only daemon in it."""

import fcntl
import os
import stat
from pathlib import Path

from teengined.client.endpoint import MAX_SOCKET_PATH_BYTES
from teengined.core.errors import AlreadyRunning, ConfigError

__all__ = ["RuntimeDirectory"]

_MODE = 0o750
# Such as /stages/d1000/stage31.something.
_LONGEST_NAME_BYTES = 40


class RuntimeDirectory:
    """Owned from construction to `close`."""

    def __init__(self, path: Path) -> None:
        """Make the directory where needed and take its lock.

        Raises:
            AlreadyRunning: another daemon holds the lock; it notices nothing.
            ConfigError: the directory cannot be made, or belongs to someone else.
        """
        self.path = path
        _check_length(path)
        _make(path)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise AlreadyRunning(
                f"a daemon runs in {path} already (pid {owner or 'unknown'})",
                hint="use it, stop it with `systemctl stop teengined`, or choose another --runtime-dir",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give up the lock; the file stays, since another daemon may be waiting on it."""
        os.close(self._lock)


def _check_length(path: Path) -> None:
    """Refuse before anything is made: sockets below it, of clients, workers and stages, have names of their own."""
    limit = MAX_SOCKET_PATH_BYTES - _LONGEST_NAME_BYTES
    if len(os.fsencode(path)) > limit:
        raise ConfigError(
            f"the runtime directory {path} has more than {limit} bytes, too many for the paths of sockets in it",
            hint="choose one with a shorter name (--runtime-dir)",
        )


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=_MODE, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"the runtime directory {path} cannot be made: {error.strerror}",
            hint="choose another with --runtime-dir, or run as a user who may write there",
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"the runtime directory {path} is not a directory of this user that others cannot write to",
            hint="choose another with --runtime-dir",
        )
