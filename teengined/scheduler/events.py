"""What may happen to a deployment's sequences, and what the shell around the scheduler must then do."""

from dataclasses import dataclass

from teengined.core.errors import TeengineError
from teengined.core.request import FinishReason, SamplingParams
from teengined.protocol.worker_messages import SampledToken, SequenceStep

__all__ = [
    "Cancelled",
    "Emit",
    "End",
    "Event",
    "Forget",
    "Instruction",
    "PipelineLost",
    "PipelineReady",
    "Run",
    "StepCompleted",
    "StepFailed",
    "Submitted",
    "Tick",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request passed validation. `sequence_id` was never used before in this deployment."""

    sequence_id: int
    owner: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    eos_token_ids: frozenset[int]
    deadline_seconds: float
    """Monotonic; the sequence fails when a `Tick` passes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Its caller no longer wants the sequence, or is gone."""

    sequence_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleted:
    """The last stage finished a step."""

    step: int
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """A stage reported an error for a step and lives on; the sequences of that step fail, others do not notice."""

    step: int
    error: TeengineError


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLost:
    """Stages are gone, and with them the KV of every sequence. Nothing runs until `PipelineReady`."""

    error: TeengineError


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineReady:
    """All stages are open and empty; steps count from 0 again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed; deadlines are looked at."""


Event = Submitted | Cancelled | StepCompleted | StepFailed | PipelineLost | PipelineReady | Tick


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Send this step to every stage. One is in flight at a time."""

    step: int
    sequences: tuple[SequenceStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Tell every stage to free the KV of these sequences."""

    sequence_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Deliver a token."""

    sequence_id: int
    token_id: int
    silent: bool
    """An end-of-sequence token: delivered, but not part of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The sequence's one terminal event: a reason, or an error."""

    sequence_id: int
    reason: FinishReason | None = None
    error: TeengineError | None = None


Instruction = Run | Forget | Emit | End
