"""Texts that end an answer, found wherever the borders of tokens fall: a fold over pieces of text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["StopText"]


@dataclass(slots=True)
class _Matcher:
    """Knuth, Morris and Pratt: how much of one text the characters so far end with, in constant time for each."""

    text: str
    length: int = 0
    """Of the longest beginning of `text` that was read last, short of the whole."""
    _fallback: list[int] = field(init=False)
    """By length matched: the length of the longest shorter beginning that it also ends with."""

    def __post_init__(self) -> None:
        """Table the fallbacks."""
        self._fallback = [0, 0]
        for index in range(1, len(self.text)):
            length = self._fallback[index]
            while length and self.text[length] != self.text[index]:
                length = self._fallback[length]
            self._fallback.append(length + (self.text[length] == self.text[index]))

    def read(self, character: str) -> bool:
        """Say whether `character` completes the text."""
        while self.length and self.text[self.length] != character:
            self.length = self._fallback[self.length]
        self.length += self.text[self.length] == character
        if self.length < len(self.text):
            return False
        self.length = self._fallback[self.length]
        return True


@dataclass(slots=True)
class StopText:
    """Passes text on up to the first stop text, and holds back what may still become one.

    The first is the one that is complete first; of several that end together, the longest. What comes out depends on
    the text alone, never on how it was cut into pieces, as long as `counts` stays.
    """

    texts: Sequence[str]
    include: bool = False
    """Leave the stop text that was found in the answer."""
    found: bool = False
    _held: str = ""
    _matchers: list[_Matcher] = field(init=False)

    def __post_init__(self) -> None:
        """Prepare one matcher for each text."""
        self._matchers = [_Matcher(text) for text in self.texts]

    def add(self, text: str, *, counts: bool = True) -> str:
        """Return what may be told now. A stop text that is complete in a piece that does not count is plain text."""
        if self.found:
            return ""
        if not self._matchers:
            return text
        whole, told = self._held + text, len(self._held)
        for end, character in enumerate(text, told + 1):
            lengths = [len(matcher.text) for matcher in self._matchers if matcher.read(character)]
            if lengths and counts:
                self.found, self._held = True, ""
                return whole[:end] if self.include else whole[: end - max(lengths)]
        free = len(whole) - max(matcher.length for matcher in self._matchers)
        self._held = whole[free:]
        return whole[:free]

    def flush(self) -> str:
        """Return what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held
