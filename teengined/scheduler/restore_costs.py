"""Whether keys and values come back from host memory or disk sooner than they are computed again. Pure.

Computing m tokens takes ceil(m / chunk) * fixed + m * each: a step reads weights once, however many tokens it runs, and
then does its arithmetic. A block comes back at what its bytes take from its tier. All of it is measured while the model
runs; what the plan and the device measurements predicted stands until then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from teengined.core.plan import Tier

__all__ = ["RestoreCosts", "Speeds"]

# Share of the newest measurement in what is known.
_NEWEST = 0.2
# Steps of so many tokens or fewer tell what a step costs before its first token, longer ones what each token adds.
_FEW_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What is expected before anything was measured, and what is believed after. By default restoring costs nothing."""

    step_seconds: float = 0.0
    """Of a step, however small."""
    token_seconds: float = 1.0
    """Of each token that a step computes."""
    host_block_seconds: float = 0.0
    """Of a block between device and host memory, one way."""
    disk_block_seconds: float = 0.0
    """Of a block between disk and host memory."""

    def block_seconds(self, tier: Tier) -> float:
        """Return how long a block takes from a tier back to the device."""
        if tier is Tier.DEVICE:
            return 0.0
        return self.host_block_seconds + (self.disk_block_seconds if tier is Tier.DISK else 0.0)


@dataclass(slots=True, kw_only=True)
class RestoreCosts:
    """Learns from steps and moves, and chooses."""

    expected: Speeds
    block_tokens: int
    max_step_tokens: int
    _host_block_seconds: float = field(init=False)
    _disk_block_seconds: float = field(init=False)
    _few: tuple[float, float] | None = None
    """Mean tokens and seconds of small steps, as the next of large ones."""
    _many: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Begin with what is expected."""
        self._host_block_seconds = self.expected.host_block_seconds
        self._disk_block_seconds = self.expected.disk_block_seconds

    @property
    def speeds(self) -> Speeds:
        """What is believed now."""
        step_seconds, token_seconds = self.expected.step_seconds, self.expected.token_seconds
        if self._many is not None:
            num_tokens, seconds = self._many
            step_seconds = min(seconds, step_seconds if self._few is None else self._step_seconds(self._few))
            token_seconds = (seconds - step_seconds) / num_tokens
        return Speeds(
            step_seconds=step_seconds,
            token_seconds=token_seconds,
            host_block_seconds=self._host_block_seconds,
            disk_block_seconds=self._disk_block_seconds,
        )

    def _step_seconds(self, few: tuple[float, float]) -> float:
        """Return what a step costs besides its tokens: where small and large steps' line meets no tokens."""
        (num_few, few_seconds), many = few, self._many
        if many is None or many[0] <= num_few:
            return 0.0
        each = max(0.0, (many[1] - few_seconds) / (many[0] - num_few))
        return max(0.0, few_seconds - each * num_few)

    def learn_step(self, num_tokens: int, seconds: float) -> None:
        """Take in how long a step took at its slowest stage; 0: nobody knows."""
        if num_tokens < 1 or seconds <= 0:
            return
        if num_tokens <= _FEW_TOKENS:
            self._few = _blend(self._few, (num_tokens, seconds))
        else:
            self._many = _blend(self._many, (num_tokens, seconds))

    def learn_blocks(self, tier: Tier, num_blocks: int, seconds: float) -> None:
        """Take in how long blocks took between device and host memory, or from disk, at the slowest stage."""
        if num_blocks < 1 or seconds <= 0:
            return
        each = seconds / num_blocks
        if tier is Tier.HOST:
            self._host_block_seconds += _NEWEST * (each - self._host_block_seconds)
        elif tier is Tier.DISK:
            self._disk_block_seconds += _NEWEST * (each - self._disk_block_seconds)

    def compute_seconds(self, num_tokens: int) -> float:
        """Return how long it takes to compute so many tokens of one sequence."""
        return self._compute_seconds(self.speeds, num_tokens)

    def _compute_seconds(self, speeds: Speeds, num_tokens: int) -> float:
        return math.ceil(num_tokens / self.max_step_tokens) * speeds.step_seconds + num_tokens * speeds.token_seconds

    @property
    def compute_block_seconds(self) -> float:
        """What a block's tokens cost in a step that is full."""
        speeds = self.speeds
        return self.block_tokens * (speeds.token_seconds + speeds.step_seconds / self.max_step_tokens)

    def is_worthwhile(self, tier: Tier) -> bool:
        """Whether a block should go to a tier: coming back, and for the host going there, takes less than computing.

        Going to disk takes no one's time. A step's fixed cost is left out: the block may be one of many in it.
        """
        speeds = self.speeds
        there = speeds.host_block_seconds if tier is Tier.HOST else 0.0
        return there + speeds.block_seconds(tier) < self.compute_block_seconds

    def num_restored(self, tiers: Sequence[Tier], num_left: int, num_after: int) -> int:
        """Return how many blocks to restore, the first of those that lie on `tiers`, before the rest is computed.

        `num_left` tokens must be computed if nothing is restored, and `num_after` if everything is. Of equal costs the
        one with more restored is taken, which leaves the device to others.
        """
        speeds = self.speeds
        best, best_seconds = 0, self._compute_seconds(speeds, num_left)
        restoring = 0.0
        for number, tier in enumerate(tiers, 1):
            restoring += speeds.block_seconds(tier)
            num_computed = num_after if number == len(tiers) else num_left - number * self.block_tokens
            seconds = restoring + self._compute_seconds(speeds, num_computed)
            if seconds <= best_seconds:
                best, best_seconds = number, seconds
        return best


def _blend(before: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
    if before is None:
        return new
    return before[0] + _NEWEST * (new[0] - before[0]), before[1] + _NEWEST * (new[1] - before[1])
