"""What the service needs to know of a process that the daemon started for it."""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

__all__ = ["Launch", "Process", "describe_exit"]


class Process(Protocol):
    """A started process, watched until it ends."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    async def wait(self) -> int:
        """Return the exit status once it has ended; negative: minus the signal that killed it."""
        ...

    def send_signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        ...


Launch = Callable[[Sequence[str], Mapping[str, str]], Process]
"""Start a program with additional environment variables, in its own session, bound to the daemon's life."""


def describe_exit(status: int) -> str:
    """Return an exit status as a clause for people."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
