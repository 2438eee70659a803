"""A program on a pseudo-terminal, as a person sits before it."""

import os
import pty
import select
import signal
import time

__all__ = ["Terminal"]

SECONDS = 30.0


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> None:
        assert self._comes(text, SECONDS), f"{text!r} never came: {self.seen!r}"

    def press_until(self, key: str, text: str) -> None:
        """Press a key until the program says `text`, again where nothing comes of it for a while, as people do.

        An interrupt that arrives while the program is just about to wait is noticed only when something wakes it.
        """
        for _ in range(int(SECONDS)):
            self.type(key)
            if self._comes(text, 1.0):
                return
        raise AssertionError(f"{text!r} never came: {self.seen!r}")

    def _comes(self, text: str, within_seconds: float) -> bool:
        deadline = time.monotonic() + within_seconds
        while text not in self.seen and time.monotonic() < deadline:
            if select.select([self._fd], [], [], 0.05)[0]:
                self.seen += os.read(self._fd, 4096).decode(errors="replace")
        found = text in self.seen
        self.seen = self.seen.partition(text)[2] if found else self.seen
        return found

    def exit_code(self) -> int:
        """Wait until the program ends."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        os.close(self._fd)
        return code

    def hang_up(self) -> None:
        """End the program where it has not ended by itself. Safe to call twice."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.exit_code()
