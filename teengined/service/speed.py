"""How fast a deployment answers, and how fast it could."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from teengined.core.plan import Plan
from teengined.core.request import Usage
from teengined.protocol.worker_messages import StepDone
from teengined.service.expert_meter import ExpertMeter

__all__ = ["SpeedMeter"]

# A rate over less time than this is noise.
_LEAST_READ_SECONDS = 0.2
# Weight of the newest answer in the running mean.
_NEWEST = 0.3


@dataclass(slots=True)
class SpeedMeter:
    """Running mean over finished answers, beside the plan's bound."""

    plan: Plan
    disk_bytes_per_second: float
    num_completed: int = 0
    tokens_per_second: float = 0.0
    tokens_per_step: float = 1.0
    """Above 1 where tokens were guessed right: they took no step of their own."""
    compute_seconds: float = field(init=False)
    """Compute of one token through all stages: as predicted, or the least that a step took, if that was less."""
    experts: ExpertMeter = field(init=False)
    _read_bytes: dict[int, int] = field(default_factory=dict[int, int])
    _read_seconds: dict[int, float] = field(default_factory=dict[int, float])

    def __post_init__(self) -> None:
        """Sum the plan's stages."""
        self.compute_seconds = sum(stage.cost.compute_seconds for stage in self.plan.stages)
        self.experts = ExpertMeter(self.plan)

    def learn(self, parts: Sequence[StepDone], num_tokens: int) -> None:
        """Take from a step what shows that the machine is faster than when it was measured: a bound must be one.

        Stages may read at the same time, so the disk can give at least the largest and at most the sum of their rates.
        The sum is taken: it understates our share of the bound where they read in turns, and never flatters it.
        """
        for part in parts:
            index = part.stage_index
            self._read_bytes[index] = self._read_bytes.get(index, 0) + part.streamed_bytes
            self._read_seconds[index] = self._read_seconds.get(index, 0.0) + part.read_seconds
        rate = sum(
            self._read_bytes[index] / seconds
            for index, seconds in self._read_seconds.items()
            if seconds > _LEAST_READ_SECONDS
        )
        self.disk_bytes_per_second = max(self.disk_bytes_per_second, rate)
        self.experts.learn(parts, num_tokens)
        if num_tokens == 1:
            self.compute_seconds = min(self.compute_seconds, sum(part.compute_seconds for part in parts))

    @property
    def bound_tokens_per_second(self) -> float:
        """Tokens per second of one stream where only the binding resource takes time, at as many a step as of late.

        How many bytes of experts a token needs from the disk depends on what it asks for: as planned until measured.
        """
        dense_bytes = self.plan.streamed_bytes_per_token - self.experts.planned_bytes
        streamed_bytes = dense_bytes + self.experts.bytes_per_token
        seconds = max(self.compute_seconds, streamed_bytes / self.disk_bytes_per_second)
        return self.tokens_per_step / seconds if seconds > 0 else 0.0

    def note(self, usage: Usage, num_choices: int = 1) -> None:
        """Count a finished answer; one token alone has no decode time to measure. Choices decode side by side."""
        self.num_completed += 1
        num_tokens = usage.completion_tokens / num_choices
        if num_tokens < 2 or usage.decode_seconds <= 0:
            return
        measured = (num_tokens - 1) / usage.decode_seconds
        before = self.tokens_per_second or measured
        self.tokens_per_second = before + _NEWEST * (measured - before)
        per_step = usage.completion_tokens / max(1, usage.completion_tokens - usage.accepted_tokens)
        self.tokens_per_step += _NEWEST * (per_step - self.tokens_per_step)
