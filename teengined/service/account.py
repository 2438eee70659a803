"""What one request used: tokens, times and streamed bytes. Times are monotonic seconds, passed in."""

from dataclasses import dataclass

from teengined.core.request import Usage

__all__ = ["Account"]


@dataclass(slots=True, kw_only=True)
class Account:
    """Adds up while a request runs."""

    num_prompt_tokens: int
    submitted_seconds: float
    num_tokens: int = 0
    """Of all choices together."""
    num_cached_tokens: int = 0
    num_accepted: int = 0
    """Of the tokens those that had been guessed."""
    _started_seconds: float | None = None
    """When its first part went to the stages."""
    _first_token_seconds: float | None = None
    _last_token_seconds: float = 0.0
    _streamed_bytes: float = 0.0
    _decode_streamed_bytes: float = 0.0

    @property
    def started(self) -> bool:
        """Whether a part of it went to the stages."""
        return self._started_seconds is not None

    def begin(self, now_seconds: float, num_cached_tokens: int) -> None:
        """Note its first part, which begins after the tokens whose KV was there already. Later calls change nothing."""
        if self._started_seconds is None:
            self._started_seconds = now_seconds
            self.num_cached_tokens = num_cached_tokens

    def note_streamed(self, num_bytes: float) -> None:
        """Add its share of the weights that a step moved."""
        self._streamed_bytes += num_bytes
        if self.num_tokens:
            self._decode_streamed_bytes += num_bytes

    def note_token(self, now_seconds: float, *, drafted: bool = False) -> None:
        """Count a token of any choice; one that was drafted took no step of its own."""
        self.num_tokens += 1
        self.num_accepted += drafted
        self._last_token_seconds = now_seconds
        if self._first_token_seconds is None:
            self._first_token_seconds = now_seconds

    def usage(self, now_seconds: float, predicted_seconds: float, bytes_per_second: float) -> Usage:
        """Return the account at its end.

        `predicted_seconds` is the planned compute of one step, `bytes_per_second` the measured disk: the larger of the
        two times is the bound that the answer's speed is held against. Tokens that were guessed took no step.
        """
        started = now_seconds if self._started_seconds is None else self._started_seconds
        first = now_seconds if self._first_token_seconds is None else self._first_token_seconds
        last = max(first, self._last_token_seconds)
        streamed_seconds = self._decode_streamed_bytes / max(1, self.num_tokens - 1) / bytes_per_second
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_tokens,
            prefill_seconds=max(0.0, first - started),
            decode_seconds=last - first,
            streamed_bytes=int(self._streamed_bytes),
            bound_seconds_per_token=max(
                predicted_seconds * self._num_steps / max(1, self.num_tokens), streamed_seconds
            ),
            cached_tokens=self.num_cached_tokens,
            queued_seconds=max(0.0, started - self.submitted_seconds),
            accepted_tokens=self.num_accepted,
        )

    @property
    def _num_steps(self) -> int:
        return max(1, self.num_tokens - self.num_accepted)
