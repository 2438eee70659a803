"""Starting processes and knowing at once when they end: a pidfd each, watched by the event loop.

A process id may be given to another process once its owner is gone; a pidfd never is, so signals go through it.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["ChildProcess", "launch"]

# What systemd meant for the daemon alone.
_NOT_INHERITED = frozenset(
    {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"}
)


def launch(command: Sequence[str], environment: Mapping[str, str]) -> "ChildProcess":
    """Start a program in its own session, with no input and the daemon's error stream for its words.

    Call it on the thread of the event loop: the kernel binds a child's death signal to the thread that started it.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    process = subprocess.Popen(
        list(command),
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=None,
        start_new_session=True,
    )
    return ChildProcess(process)


class ChildProcess:
    """A started process. It is reaped as soon as it ends."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        """Watch `process` on the running event loop."""
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._loop = asyncio.get_running_loop()
        self._status: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit status once it has ended; negative: minus the signal that killed it."""
        return await asyncio.shield(self._status)

    def send_signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        if not self._status.done():
            signal.pidfd_send_signal(self._pidfd, number)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._status.set_result(self._process.wait())
