"""How an answer looks on a terminal and in a pipe: reasoning dimmed, calls marked, the rest as it is."""

from enum import Enum, auto

from teengined.cli.answer import Write
from teengined.cli.prose import printable
from teengined.protocol.messages import TokenChunk, ToolCallDelta

__all__ = ["AnswerView"]

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# Where nothing can be dimmed.
_THINKING = "(thinking) "


class _Kind(Enum):
    NOTHING = auto()
    REASONING = auto()
    TEXT = auto()
    CALL = auto()


class AnswerView:
    """Writes one answer as it comes. Into a pipe goes what was asked for: no reasoning, each character as it is."""

    def __init__(self, write: Write, *, is_terminal: bool, has_colour: bool) -> None:
        """Write through `write`; `has_colour` lets it use escape sequences."""
        self._write = write
        self._is_terminal = is_terminal
        self._has_colour = has_colour
        self._kind = _Kind.NOTHING
        self._at_line_start = True

    def show(self, chunk: TokenChunk) -> None:
        """Write what a chunk adds."""
        if chunk.reasoning and self._is_terminal:
            self._turn_to(_Kind.REASONING)
            self._put(chunk.reasoning)
        if chunk.text:
            self._turn_to(_Kind.TEXT)
            self._put(chunk.text)
        for delta in chunk.tool_calls:
            self._show_call(delta)

    def end(self) -> None:
        """End what is open, after the last chunk or where the answer was stopped. Safe to call twice."""
        self._turn_to(_Kind.NOTHING)

    def _show_call(self, delta: ToolCallDelta) -> None:
        if delta.name:
            self._turn_to(_Kind.CALL)
            self._put(f"[calls {delta.name} ")
        self._put(delta.arguments)

    def _turn_to(self, kind: _Kind) -> None:
        if kind is self._kind and kind is not _Kind.CALL:
            return
        if self._kind is _Kind.CALL:
            self._put("]")
        elif self._kind is _Kind.REASONING and self._has_colour:
            self._write(_PLAIN)
        if kind is not _Kind.NOTHING and not self._at_line_start:
            self._put("\n")
        if self._kind is _Kind.REASONING and kind is _Kind.TEXT:
            self._put("\n")
        if kind is _Kind.REASONING:
            self._write(_DIM if self._has_colour else _THINKING)
        self._kind = kind

    def _put(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._write(printable(text) if self._is_terminal else text)
