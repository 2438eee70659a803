"""The two things that the pickle machine moves over: the bytes of the pickle, and the stack of values."""

import struct

from teengined_plugins.sources.pickled.values import RefusedFile

__all__ = ["ByteStream", "ValueStack", "text_of"]

_MAX_NAME_BYTES = 256


class ByteStream:
    """A position that can only move forward, and never beyond the end."""

    def __init__(self, content: bytes) -> None:
        """Begin at the first byte."""
        self._content = content
        self.position = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        end = self.position + count
        if end > len(self._content):
            raise RefusedFile(f"is truncated: its description ends at byte {len(self._content)}")
        taken = self._content[self.position : end]
        self.position = end
        return taken

    def number(self, form: str) -> int:
        """Return the next number, of a form that `struct` knows."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Return the text up to the end of the line."""
        end = self._content.find(b"\n", self.position, self.position + _MAX_NAME_BYTES)
        if end < 0:
            raise RefusedFile("is damaged: a name in its description does not end")
        text = self.take(end - self.position)
        self.position += 1
        return text_of(text)


class ValueStack:
    """Values, and marks that begin groups of them. Nothing below the last mark can be taken."""

    def __init__(self) -> None:
        """Begin empty."""
        self._values: list[object] = []
        self._marks: list[int] = []

    @property
    def is_empty(self) -> bool:
        """Say whether no value is there, and no group begun."""
        return not self._values and not self._marks

    def push(self, value: object) -> None:
        """Put a value down."""
        self._values.append(value)

    def pop(self) -> object:
        """Take the last value."""
        if len(self._values) <= (self._marks[-1] if self._marks else 0):
            raise RefusedFile("is damaged: its description takes what it has not put down")
        return self._values.pop()

    def top(self) -> object:
        """Return the last value and leave it there."""
        value = self.pop()
        self._values.append(value)
        return value

    def mark(self) -> None:
        """Begin a group."""
        self._marks.append(len(self._values))

    def group(self) -> list[object]:
        """Take all values since the last mark, and the mark."""
        if not self._marks:
            raise RefusedFile("is damaged: its description ends a group that it has not begun")
        start = self._marks.pop()
        items = self._values[start:]
        del self._values[start:]
        return items


def text_of(content: bytes) -> str:
    """Return bytes as text; pickles may hold halves of surrogate pairs."""
    try:
        return content.decode("utf-8", errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise RefusedFile("is damaged: a text in its description is none") from error
