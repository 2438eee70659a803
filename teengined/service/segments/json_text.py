"""JSON inside an answer: finding where it ends while it arrives, and taking it apart without rewriting it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from teengined.core.strict_json import STRICT_JSON

__all__ = ["JsonScan", "array_elements", "object_members", "string_of"]

# A call's arguments may hold a file; beyond that it is no call that anyone waits for.
_MAX_CHARACTERS = 1 << 20
# Far above real arguments, far below what a recursive decoder cannot take.
_MAX_DEPTH = 128
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]*')
_BETWEEN = re.compile(r"[ \t\r\n0-9+\-.,:eEtrufalsn]*")
_SPACE = re.compile(r"[ \t\r\n]*")
_SPACES = " \t\r\n"
# JSON can name half a character; `json` joins the halves that belong together.
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonScan:
    """Finds the end of one object or array, one character after the other, wherever the text is cut.

    It knows strings and brackets. The characters that can stand between them are few, so that what is no JSON fails
    soon; what it lets through need not be valid yet.
    """

    def __init__(self, opening: str, leading: str = _SPACES, first_keys: frozenset[str] | None = None) -> None:
        """Look for `opening` (a bracket) after any of `leading`. An object that begins with another key fails there."""
        self.done = False
        self.failed = False
        self._opening = opening
        self._leading = leading
        self._first_keys = first_keys
        self._pieces: list[str] = []
        self._num_left = _MAX_CHARACTERS
        self._depth = 0
        self._in_string = False
        self._string_ended = False
        self._is_escaped = False

    @property
    def text(self) -> str:
        """What was taken so far."""
        return "".join(self._pieces)

    def feed(self, text: str, start: int) -> int:
        """Take `text` from `start` on; return the position after the last character taken."""
        position, limit = start, min(len(text), start + self._num_left)
        while position < limit and not (self.done or self.failed):
            moved = self._step(text, position, limit)
            self._pieces.append(text[position:moved])
            position = moved
            if self._string_ended and self._first_keys is not None:
                self._judge_first_key(self._first_keys)
        self._num_left -= position - start
        self.failed |= self._num_left == 0 and not self.done
        return position

    def _step(self, text: str, position: int, limit: int) -> int:
        if self._depth == 0:
            return self._before(text, position)
        if self._is_escaped:
            self._is_escaped = False
            return position + 1
        pattern = _IN_STRING if self._in_string else _BETWEEN
        match = pattern.match(text, position, limit)
        if match is not None and match.end() > position:
            return match.end()
        return self._turn(text[position], position)

    def _before(self, text: str, position: int) -> int:
        if text[position] == self._opening:
            self._depth = 1
        elif text[position] not in self._leading:
            self.failed = True
            return position
        return position + 1

    def _turn(self, sign: str, position: int) -> int:
        """Take a character that changes where we are, or fail on it."""
        if sign == '"':
            self._string_ended = self._in_string
            self._in_string = not self._in_string
        elif self._in_string and sign == "\\":
            self._is_escaped = True
        elif not self._in_string and sign in "{[" and self._depth < _MAX_DEPTH:
            self._depth += 1
        elif not self._in_string and sign in "}]":
            self._depth -= 1
            self.done = self._depth == 0
        else:
            self.failed = True
            return position
        return position + 1

    def _judge_first_key(self, keys: frozenset[str]) -> None:
        """Fail at the end of the first string where it is none of the keys that are looked for."""
        first = self.text.lstrip(self._leading)[1:].strip(_SPACES)
        self.failed = first[1:-1] not in keys
        self._first_keys = None


def object_members(text: str) -> dict[str, str] | None:
    """Return the JSON text of each member of an object, as it was written; None where it is not valid."""
    try:
        return dict(_members(text))
    except (ValueError, RecursionError):
        return None


def array_elements(text: str) -> list[str] | None:
    """Return the JSON text of each element of an array, as it was written; None where it is not valid."""
    try:
        return list(_elements(text))
    except (ValueError, RecursionError):
        return None


def string_of(text: str) -> str | None:
    """Return the string that a valid JSON text is; None for anything else, and for text that no encoding can carry."""
    value: Any = json.loads(text)
    return value if isinstance(value, str) and _SURROGATE.search(value) is None else None


def _members(text: str) -> Iterator[tuple[str, str]]:
    position = _skip(text, _expect(text, _skip(text, 0), "{"))
    while text[position : position + 1] != "}":
        key, position = _value(text, position)
        name = string_of(key)
        if name is None:
            raise ValueError("a key is no string")
        value, position = _value(text, _expect(text, position, ":"))
        yield name, value
        position = _next(text, position, "}")
    _check_end(text, position)


def _elements(text: str) -> Iterator[str]:
    position = _skip(text, _expect(text, _skip(text, 0), "["))
    while text[position : position + 1] != "]":
        element, position = _value(text, position)
        yield element
        position = _next(text, position, "]")
    _check_end(text, position)


def _value(text: str, position: int) -> tuple[str, int]:
    """Return the text of the value at `position`, and where what follows it begins."""
    start = _skip(text, position)
    _, end = STRICT_JSON.raw_decode(text, start)
    return text[start:end], _skip(text, end)


def _next(text: str, position: int, closing: str) -> int:
    """Return where the next item begins, or where `closing` stands."""
    if text[position : position + 1] == closing:
        return position
    begin = _skip(text, _expect(text, position, ","))
    if text[begin : begin + 1] == closing:
        raise ValueError("a comma before the end")
    return begin


def _expect(text: str, position: int, sign: str) -> int:
    if text[position : position + 1] != sign:
        raise ValueError(f"no {sign} at {position}")
    return position + 1


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _check_end(text: str, position: int) -> None:
    if _skip(text, position + 1) != len(text):
        raise ValueError("more after the end")
