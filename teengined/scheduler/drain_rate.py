"""How fast the queue empties: what a refused client is told about when to come again."""

__all__ = ["DrainRate"]

# Share by which the newest departure replaces what was known: the last twenty or so count.
_WEIGHT = 0.05
# Before anything was measured, and the least and most that is ever said: a hint, neither a hammer nor a farewell.
_FIRST_SECONDS = 1.0
_LEAST_SECONDS = 0.05
_MOST_SECONDS = 60.0


class DrainRate:
    """Decaying sums over sequences that left the queue, of the time while there was one."""

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self._since_seconds = 0.0
        self._seconds = _FIRST_SECONDS
        self._num_sequences = 1.0
        self._num_tokens = 0.0

    def started(self, now_seconds: float) -> None:
        """Note that the queue is no longer empty."""
        self._since_seconds = now_seconds

    def left(self, num_tokens: int, now_seconds: float) -> None:
        """Note that a sequence with so many tokens to prefill left the queue."""
        self._seconds = self._seconds * (1 - _WEIGHT) + max(0.0, now_seconds - self._since_seconds)
        self._num_sequences = self._num_sequences * (1 - _WEIGHT) + 1
        self._num_tokens = self._num_tokens * (1 - _WEIGHT) + num_tokens
        self._since_seconds = now_seconds

    def seconds_for(self, num_sequences: int, num_tokens: int) -> float:
        """Return the seconds until so many sequences (at least one), and so many tokens, will have left."""
        by_sequences = max(1, num_sequences) / self._num_sequences
        by_tokens = num_tokens / self._num_tokens if self._num_tokens else 0.0
        seconds = self._seconds * max(by_sequences, by_tokens)
        return round(min(_MOST_SECONDS, max(_LEAST_SECONDS, seconds)), 3)
