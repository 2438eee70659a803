"""Telling systemd how the daemon is, by the datagrams of sd_notify(3). Silent where nobody listens."""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier"]

logger = logging.getLogger(__name__)


class Notifier:
    """Sends states to the service manager that started this process, if any."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read `NOTIFY_SOCKET` and `WATCHDOG_USEC`."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        intended = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "0") if intended else "0"
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0

    def ready(self, status: str) -> None:
        """Tell that clients are served."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Tell one line about what goes on."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Tell that the daemon is on its way out."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    async def keep_watchdog(self) -> None:
        """Say that the event loop turns, twice in each watchdog period; return at once where none is set."""
        while self.watchdog_seconds > 0:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto(state.encode(), address)
        except OSError as error:
            logger.warning("systemd was not told %r: %s", state.partition("\n")[0], error)
