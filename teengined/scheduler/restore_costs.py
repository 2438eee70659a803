"""Whether keys and values come back from host memory or disk sooner than they are computed again. Pure.

Computing m tokens takes ceil(m / chunk) * fixed + m * each + keys * position: a step reads weights once, however many
tokens it runs, and then does its arithmetic, of which attention grows with the keys that each token attends to. A block
comes back at what its bytes take from its tier, wherever it stands. So what lies deep in a long context is sooner worth
restoring. All of it is measured while the model runs; what the plan and the device measurements predicted stands until
then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from teengined.core.plan import Tier
from teengined.scheduler.step_costs import StepCosts, StepLoad, StepSeconds, num_attended

__all__ = ["RestoreCosts", "Speeds"]

# Share of the newest measurement in what is known.
_NEWEST = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What is expected before anything was measured, and what is believed after. By default restoring costs nothing."""

    step_seconds: float = 0.0
    """Of a step, however small."""
    token_seconds: float = 1.0
    """Of each token that a step computes, before attention."""
    position_seconds: float = 0.0
    """Of each key that a prompt's token attends to."""
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
    _num_deepest_tokens: int = 0
    _steps: StepCosts = field(init=False)

    def __post_init__(self) -> None:
        """Begin with what is expected. Rows that decode are thought to attend at what prompts do."""
        expected = self.expected
        self._steps = StepCosts(
            expected=StepSeconds(
                step=expected.step_seconds,
                token=expected.token_seconds,
                prompt_position=expected.position_seconds,
                row_position=expected.position_seconds,
            )
        )
        self._host_block_seconds = self.expected.host_block_seconds
        self._disk_block_seconds = self.expected.disk_block_seconds

    @property
    def speeds(self) -> Speeds:
        """What is believed now."""
        seconds = self._steps.seconds
        return Speeds(
            step_seconds=seconds.step,
            token_seconds=seconds.token,
            position_seconds=seconds.prompt_position,
            host_block_seconds=self._host_block_seconds,
            disk_block_seconds=self._disk_block_seconds,
        )

    def learn_step(self, load: StepLoad, seconds: float) -> None:
        """Take in how long a step took at its slowest stage; 0: nobody knows."""
        self._steps.learn(load, seconds)

    def learn_depth(self, num_tokens: int) -> None:
        """Take in that a context of so many tokens was computed."""
        self._num_deepest_tokens = max(self._num_deepest_tokens, num_tokens)

    def learn_blocks(self, tier: Tier, num_blocks: int, seconds: float) -> None:
        """Take in how long blocks took between device and host memory, or from disk, at the slowest stage."""
        if num_blocks < 1 or seconds <= 0:
            return
        each = seconds / num_blocks
        if tier is Tier.HOST:
            self._host_block_seconds += _NEWEST * (each - self._host_block_seconds)
        elif tier is Tier.DISK:
            self._disk_block_seconds += _NEWEST * (each - self._disk_block_seconds)

    def compute_seconds(self, num_tokens: int, start: int = 0) -> float:
        """Return how long it takes to compute so many tokens of one sequence from position `start` on."""
        return self._compute_seconds(self.speeds, num_tokens, start)

    def _compute_seconds(self, speeds: Speeds, num_tokens: int, start: int) -> float:
        num_steps = math.ceil(num_tokens / self.max_step_tokens)
        attention = num_attended(start, num_tokens) * speeds.position_seconds
        return num_steps * speeds.step_seconds + num_tokens * speeds.token_seconds + attention

    @property
    def compute_block_seconds(self) -> float:
        """What a context's first block costs in a step that is full."""
        return self._compute_block_seconds(self.speeds, 0)

    def _compute_block_seconds(self, speeds: Speeds, start: int) -> float:
        """Return what a block's tokens cost in a step that is full: its fixed cost is shared with other blocks."""
        attention = num_attended(start, self.block_tokens) * speeds.position_seconds
        return self.block_tokens * (speeds.token_seconds + speeds.step_seconds / self.max_step_tokens) + attention

    def is_worthwhile(self, tier: Tier) -> bool:
        """Whether blocks should go to a tier: coming back, and for the host going there, takes less than computing.

        Going to disk takes no one's time. A context is of use as a whole: without its first blocks, cheap to compute as
        they are, nobody finds those behind them. So what counts is a block's mean cost in the longest context that was
        computed; of each context that is to come back, `num_restored` decides again.
        """
        speeds = self.speeds
        there = speeds.host_block_seconds if tier is Tier.HOST else 0.0
        middle = max(0, self._num_deepest_tokens - self.block_tokens) // 2
        return there + speeds.block_seconds(tier) < self._compute_block_seconds(speeds, middle)

    def num_restored(self, tiers: Sequence[Tier], num_left: int, num_after: int, num_before: int = 0) -> int:
        """Return how many blocks to restore, the first of those that lie on `tiers`, before the rest is computed.

        `num_before` tokens are there already, `num_left` must be computed if nothing is restored, and `num_after` if
        everything is. Of equal costs the one with more restored is taken, which leaves the device to others.
        """
        speeds, num_tokens = self.speeds, num_before + num_left
        best, best_seconds = 0, self._compute_seconds(speeds, num_left, num_before)
        restoring = 0.0
        for number, tier in enumerate(tiers, 1):
            restoring += speeds.block_seconds(tier)
            num_computed = num_after if number == len(tiers) else num_left - number * self.block_tokens
            seconds = restoring + self._compute_seconds(speeds, num_computed, num_tokens - num_computed)
            if seconds <= best_seconds:
                best, best_seconds = number, seconds
        return best
