"""Tokens to text while they arrive. A code point may be cut across tokens; its bytes wait until it is whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Detokenizer"]

# What decoders write for bytes that are no UTF-8 (yet).
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Tokens that may wait for the end of a code point. Real text never cuts more than a few in a row; bytes that are no
# text at all would wait for ever and cost ever more to decode.
_MAX_WAITING_TOKENS = 64


@dataclass(slots=True)
class Detokenizer:
    """Folds one answer's tokens into pieces of text whose concatenation is the decoded answer.

    Decoders look at neighbours (a leading space, a merged character), so each piece is the difference between two
    decodings of a short window: with and without the new tokens.
    """

    decode: Callable[[Sequence[int]], str]
    shown: Mapping[int, str] = field(default_factory=dict[int, str])
    """Special tokens that have a text here, though the decoder gives them none."""
    _window: list[int] = field(default_factory=list[int])
    _num_told: int = 0
    """Leading tokens of the window whose text is out; they are only there as neighbours."""

    def add(self, token_id: int) -> str:
        """Return what the token completes; empty where a code point is still open."""
        if token_id in self.shown:
            return self._settle() + self.shown[token_id]
        self._window.append(token_id)
        text = self._new_text()
        is_open = not text or text.endswith(_REPLACEMENT)
        if is_open and len(self._window) - self._num_told < _MAX_WAITING_TOKENS:
            return ""
        self._window = self._window[self._num_told :]
        self._num_told = len(self._window)
        return text

    def flush(self) -> str:
        """Return what still waits, at the end of the answer. A code point that never became whole is marked as such."""
        text = self._new_text()
        self._window.clear()
        self._num_told = 0
        return text

    def _settle(self) -> str:
        """Return what still waits, because a special token ends it; what is told stays as neighbour of what follows."""
        text = self._new_text()
        told = [] if text.endswith(_REPLACEMENT) else self._window[self._num_told :] or self._window
        self._window, self._num_told = told, len(told)
        return text

    def _new_text(self) -> str:
        return self.decode(self._window)[len(self.decode(self._window[: self._num_told])) :]
