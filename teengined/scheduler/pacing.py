"""How many prompt tokens run beside answers that are being read.

A step's time grows with its tokens, and everyone in it waits for it. Beside decoding sequences a step may take
`stretch` times as long as one that only decodes; how many prompt tokens that is depends on the model, the device, and
on what is streamed, so it is found by trying: each such step says whether it could have been larger. Where more prompts
wait than sequences decode, the few give way to the many: prompts get as many times more as they are more.
"""

from dataclasses import dataclass, field

__all__ = ["Pacer"]

# Fewer are never worth a step of their own: progress of prompts is promised too.
_LEAST_TOKENS = 8
# Where nothing was measured yet.
_FIRST_TOKENS = 64
# One odd step moves the count, or the time of a decode step, by no more than this.
_MOST_GROWTH, _MOST_SHRINKAGE = 1.2, 0.5
_NEWEST = 0.2


@dataclass(slots=True, kw_only=True)
class Pacer:
    """Learns from finished steps. Pure: it is told of times, it reads no clock."""

    max_tokens: int
    """Of a step; what runs where nothing decodes."""
    stretch: float
    """How many times longer than without prompts a step with them may take."""
    _num_beside: float = _FIRST_TOKENS
    _decode_seconds: dict[int, float] = field(default_factory=dict[int, float])
    """By number of decoding rows, in powers of two."""

    def num_prompt_tokens(self, num_decoding: int, num_prompts: int = 1) -> int:
        """Return how many prompt tokens may run in a step in which so many sequences decode.

        `num_prompts` sequences have prompts to run, or wait for it.
        """
        left = self.max_tokens - num_decoding
        if num_decoding == 0 or self.stretch <= 0:
            return left
        share = self._num_beside * max(1.0, num_prompts / num_decoding)
        return max(0, min(left, max(_LEAST_TOKENS, round(share))))

    def learn(self, num_decoding: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step took: its slowest stage, since the others run other steps meanwhile."""
        if num_decoding == 0 or seconds <= 0:
            return
        bucket = num_decoding.bit_length()
        if num_prompt_tokens == 0:
            before = self._decode_seconds.get(bucket, seconds)
            self._decode_seconds[bucket] = before + _NEWEST * (seconds - before)
            return
        decode_seconds = self._nearest(bucket)
        # A step that carried less than it might have says nothing about what more would cost.
        if decode_seconds is not None and num_prompt_tokens >= int(
            min(self._num_beside, self.max_tokens - num_decoding)
        ):
            allowed = max(0.0, (self.stretch - 1) * decode_seconds)
            seconds_each = max(seconds - decode_seconds, 1e-9) / num_prompt_tokens
            factor = min(_MOST_GROWTH, max(_MOST_SHRINKAGE, allowed / seconds_each / self._num_beside))
            self._num_beside = min(float(self.max_tokens), max(float(_LEAST_TOKENS), self._num_beside * factor))

    def _nearest(self, bucket: int) -> float | None:
        """Return the decode time of the nearest number of rows that was measured."""
        known = min(self._decode_seconds, key=lambda other: abs(other - bucket), default=None)
        return None if known is None else self._decode_seconds[known]
