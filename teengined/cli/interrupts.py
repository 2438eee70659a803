"""Ctrl-C, as a chat needs it: it ends what the user waits for, and never the program by coming at a bad moment."""

import signal
from enum import Enum, auto
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupts"]


class _Mode(Enum):
    IGNORED = auto()
    HELD = auto()
    OPEN = auto()


class Interrupts:
    """Decides what SIGINT does while it is in charge. For the main thread.

    Nothing at first. Between `open` and `close` it raises `KeyboardInterrupt`, once: what unwinds is not interrupted
    again. After `hold` one waits for `open`, because a request that was sent but not accepted has no name yet and could
    not be cancelled; it would go on unseen. A second one does not wait.
    """

    def __init__(self) -> None:
        """Take nothing over yet."""
        self._mode = _Mode.IGNORED
        self._is_waiting = False
        self._before: Any = None

    def hold(self) -> None:
        """Keep the next interrupt until `open`."""
        self._is_waiting, self._mode = False, _Mode.HELD

    def open(self) -> None:
        """Let the next interrupt through.

        Raises:
            KeyboardInterrupt: one was kept.
        """
        self._mode = _Mode.OPEN
        if self._is_waiting:
            self._is_waiting = False
            self._raise()

    def close(self) -> None:
        """Ignore interrupts; one that was kept is forgotten."""
        self._is_waiting, self._mode = False, _Mode.IGNORED

    def __enter__(self) -> Self:
        """Take over SIGINT."""
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give SIGINT back."""
        signal.signal(signal.SIGINT, self._before)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._mode is _Mode.OPEN or (self._mode is _Mode.HELD and self._is_waiting):
            self._raise()
        self._is_waiting = self._mode is _Mode.HELD

    def _raise(self) -> None:
        self._mode = _Mode.IGNORED
        raise KeyboardInterrupt
