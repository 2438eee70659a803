"""How well the expert caches of a deployment do. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from teengined.core.plan import Plan
from teengined.protocol.messages import ExpertFigures
from teengined.protocol.worker_messages import ExpertCounts, StepDone

__all__ = ["ExpertMeter"]

# Experts asked for after which what was counted before weighs half: some hundreds of tokens of a large model.
_HALF_LIFE = 1 << 16
# Weight of the newest decode step in the running mean of bytes.
_NEWEST = 0.05


@dataclass(slots=True)
class _Sums:
    """Counts that fade."""

    asked: float = 0.0
    hits: float = 0.0
    best_hits: float = 0.0
    simulated_hits: float = 0.0
    guessed: float = 0.0
    guessed_right: float = 0.0

    def add(self, before: ExpertCounts | None, now: ExpertCounts) -> None:
        """Take in what was counted between two reports of a stage."""
        if before is None or now.num_asked < before.num_asked:  # Its first report, or it was opened again.
            before = ExpertCounts(
                policy="", num_asked=0, num_hits=0, num_best_hits=0, num_simulated_hits=0, read_bytes=0
            )
        asked = now.num_asked - before.num_asked
        keep = 0.5 ** (asked / _HALF_LIFE)
        self.asked = self.asked * keep + asked
        self.hits = self.hits * keep + now.num_hits - before.num_hits
        self.best_hits = self.best_hits * keep + now.num_best_hits - before.num_best_hits
        self.simulated_hits = self.simulated_hits * keep + now.num_simulated_hits - before.num_simulated_hits
        self.guessed = self.guessed * keep + now.num_guessed - before.num_guessed
        self.guessed_right = self.guessed_right * keep + now.num_guessed_right - before.num_guessed_right


@dataclass(slots=True)
class ExpertMeter:
    """Follows the counts that the stages report with each step."""

    plan: Plan
    bytes_per_token: float = field(init=False)
    """Of experts, read for one token of one stream: as planned at first, then as measured."""
    _sums: _Sums = field(default_factory=_Sums)
    _latest: dict[int, ExpertCounts] = field(default_factory=dict[int, ExpertCounts])

    def __post_init__(self) -> None:
        """Begin with what the plan expects."""
        self.bytes_per_token = float(self.planned_bytes)

    @property
    def planned_bytes(self) -> int:
        """Bytes of experts that the plan expects to be read for a token."""
        return sum(stage.experts.missed_bytes_per_token for stage in self.plan.stages if stage.experts is not None)

    def learn(self, parts: Sequence[StepDone], num_tokens: int) -> None:
        """Take in a step's reports; one that ran a single token says what a token costs."""
        read_bytes = 0
        for part in parts:
            if part.experts is None:
                continue
            before = self._latest.get(part.stage_index)
            self._sums.add(before, part.experts)
            self._latest[part.stage_index] = part.experts
            if before is not None:
                read_bytes += max(0, part.experts.read_bytes - before.read_bytes)
        if num_tokens == 1 and self._latest:
            self.bytes_per_token += _NEWEST * (read_bytes - self.bytes_per_token)

    def describe(self) -> ExpertFigures | None:
        """Return the figures for people; None where the plan caches no experts."""
        planned = [stage.experts for stage in self.plan.stages if stage.experts is not None]
        if not planned:
            return None
        asked = max(self._sums.asked, 1.0)
        wanted = sum(experts.bytes_per_token for experts in planned)
        return ExpertFigures(
            num_experts=sum(cache.num_experts for experts in planned for cache in experts.caches),
            num_slots=sum(cache.num_slots for experts in planned for cache in experts.caches),
            expected_hit_rate=1 - self.planned_bytes / max(wanted, 1),
            policies=tuple(counts.policy for _, counts in sorted(self._latest.items())),
            hit_rate=self._sums.hits / asked,
            best_hit_rate=self._sums.best_hits / asked,
            simulated_hit_rate=self._sums.simulated_hits / asked,
            bytes_per_token=round(self.bytes_per_token),
            guessed_rate=self._sums.guessed_right / max(self._sums.asked - self._sums.hits, 1.0),
            guess_right_rate=self._sums.guessed_right / max(self._sums.guessed, 1.0),
            guessing_stages=tuple(counts.is_guessing for _, counts in sorted(self._latest.items())),
        )
