"""Finding markers in text that arrives in pieces: a marker may be cut anywhere, so its beginning has to wait."""

import re

__all__ = ["Markers"]


class Markers:
    """Words to look for. None is the beginning of another, so that the first one found is the one that is there."""

    def __init__(self, *words: str) -> None:
        """Keep `words`, which are not empty."""
        self._words = words
        self._pattern = re.compile("|".join(map(re.escape, words)))
        self._longest = max(map(len, words))

    def search(self, text: str, start: int) -> re.Match[str] | None:
        """Return the first marker in `text` from `start` on."""
        return self._pattern.search(text, start)

    def open_end(self, text: str, start: int) -> int:
        """Return where the text ends that no marker can claim: before the beginning of one, or at its own end."""
        for position in range(max(start, len(text) - self._longest + 1), len(text)):
            if any(word.startswith(text[position:]) for word in self._words):
                return position
        return len(text)
