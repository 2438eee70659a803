"""How fast a deployment answers, and how fast it could."""

from dataclasses import dataclass, field

from teengined.core.plan import Plan
from teengined.core.request import Usage

__all__ = ["SpeedMeter"]

# Weight of the newest answer in the running mean.
_NEWEST = 0.3


@dataclass(slots=True)
class SpeedMeter:
    """Running mean over finished answers, beside the plan's bound."""

    plan: Plan
    disk_bytes_per_second: float
    num_completed: int = 0
    tokens_per_second: float = 0.0
    compute_seconds: float = field(init=False)
    """Predicted compute of one token through all stages."""

    def __post_init__(self) -> None:
        """Sum the plan's stages."""
        self.compute_seconds = sum(stage.cost.compute_seconds for stage in self.plan.stages)

    @property
    def bound_tokens_per_second(self) -> float:
        """Tokens per second of one stream where only the binding resource takes time."""
        seconds = max(self.compute_seconds, self.plan.streamed_bytes_per_token / self.disk_bytes_per_second)
        return 1 / seconds if seconds > 0 else 0.0

    def note(self, usage: Usage) -> None:
        """Count a finished answer; one token alone has no decode time to measure."""
        self.num_completed += 1
        if usage.completion_tokens < 2 or usage.decode_seconds <= 0:
            return
        measured = (usage.completion_tokens - 1) / usage.decode_seconds
        before = self.tokens_per_second or measured
        self.tokens_per_second = before + _NEWEST * (measured - before)
