"""Prompt lookup: what followed the last time that a sequence said the same (Saxena, "Prompt lookup decoding", 2023).

Each run of a few tokens is remembered by where it was seen last, in tables of fixed size. The table only finds a place;
what makes a match is that the tokens there are the wanted ones. So a collision costs a guess and never a wrong one.
"""

from array import array
from collections.abc import Callable

__all__ = ["LookupIndex", "ReadTokens"]

ReadTokens = Callable[[int, int], tuple[int, ...]]
"""Returns a sequence's tokens from one position up to, not including, another."""

# The longer run is asked first: it is seldom there by chance. Two tokens in common say next to nothing.
_RUNS = (6, 3)
_PLACE_BYTES = 4


class LookupIndex:
    """Where runs of one sequence's tokens ended last. Grows with the sequence, a bounded number of tokens at a time.

    Tokens that are known never change, so that what was put in stays true, also over a preemption.
    """

    def __init__(self, num_tokens: int, window_tokens: int) -> None:
        """Look back `window_tokens` at most in a sequence that may become `num_tokens` long."""
        self._window = window_tokens
        num_places = 1 << (4 * min(num_tokens, window_tokens) - 1).bit_length()
        self._mask = num_places - 1
        # One more than the position after the run; 0: none.
        self._places = {length: array("i", bytes(_PLACE_BYTES * num_places)) for length in _RUNS}
        self._next = min(_RUNS)

    def extend(self, read: ReadTokens, num_tokens: int, num_most: int) -> int:
        """Take in runs that end before the last of `num_tokens` known tokens; return how many, at most `num_most`."""
        first = max(self._next, num_tokens - self._window)
        stop = min(num_tokens, first + num_most)
        if stop <= first:
            return 0
        base = max(0, first - max(_RUNS))
        tokens = read(base, stop)
        for length, places in self._places.items():
            for end in range(max(first, length), stop):
                places[hash(tokens[end - length - base : end - base]) & self._mask] = end + 1
        self._next = stop
        return stop - first

    def propose(self, read: ReadTokens, num_tokens: int, num_most: int) -> tuple[int, ...]:
        """Return at most `num_most` tokens that may follow the `num_tokens` known ones; none where nothing is alike."""
        end = self._find(read, num_tokens)
        if end == 0:
            return ()
        guess = list(read(end, min(end + num_most, num_tokens)))
        period = num_tokens - end
        while len(guess) < num_most:  # What repeats itself is guessed to go on with it.
            guess.append(guess[-period])
        return tuple(guess)

    def _find(self, read: ReadTokens, num_tokens: int) -> int:
        """Return the position after the last earlier run like the one at the end; 0: there is none."""
        for length, places in self._places.items():
            if num_tokens > length:
                run = read(num_tokens - length, num_tokens)
                end = places[hash(run) & self._mask] - 1
                if max(length, num_tokens - self._window) <= end < num_tokens and read(end - length, end) == run:
                    return end
        return 0
