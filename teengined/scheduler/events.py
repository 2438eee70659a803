"""What may happen to a deployment's sequences, and what the shell around the scheduler must then do."""

from dataclasses import dataclass

from teengined.core.errors import TeengineError
from teengined.core.request import FinishReason, Goal
from teengined.core.sampling import SamplingParams
from teengined.kvcache.kept import KeptBlock
from teengined.protocol.worker_messages import (
    BlockCopy,
    PooledVector,
    PromptLogprobs,
    SampledToken,
    SequenceOpen,
    SequencePart,
    SlotCopy,
    SlotMove,
)

__all__ = [
    "BlocksFound",
    "Cancelled",
    "DraftModelOffered",
    "DraftWanted",
    "Emit",
    "End",
    "Event",
    "GuessArrived",
    "Instruction",
    "PipelineLost",
    "PipelineReady",
    "Run",
    "SpoolReported",
    "StepCompleted",
    "StepFailed",
    "Stopped",
    "Submitted",
    "Tell",
    "Tick",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request passed validation. All its choices are taken, or none."""

    sequence_ids: tuple[int, ...]
    """One for each choice, never used before in this deployment. The first computes the prompt; the others wait for it
    and share its blocks."""
    owner: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    eos_token_ids: frozenset[int]
    deadline_seconds: float
    """Monotonic; the sequences fail when a `Tick` passes it."""
    priority: int = 0
    """Higher goes first, among its owner's at least."""
    salt: bytes = b""
    """Sequences share cached prefixes only with those of the same salt."""
    goal: Goal = Goal.GENERATE
    pooling: str = ""
    score_start: int = 0
    speculates: bool = True
    """Tokens may be guessed ahead; the answer is the same either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Its caller no longer wants the sequence, or is gone."""

    sequence_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A stop text was found in what the sequence emitted; tokens that it may still draw are not wanted."""

    sequence_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleted:
    """The last stage finished a step."""

    step: int
    tokens: tuple[SampledToken, ...]
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    vectors: tuple[PooledVector, ...] = ()
    seconds: float = 0.0
    """How long its slowest stage worked on it; 0: nobody knows."""
    copy_seconds: float = 0.0
    """How long the slowest copied blocks to and from host memory before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolReported:
    """Moves of earlier runs are over: on every stage, or failed on one."""

    done: tuple[SlotMove, ...] = ()
    """Those that were written have the digests of all stages."""
    failed: tuple[SlotMove, ...] = ()
    fetch_seconds: float = 0.0
    """Of the fetches among them, at the slowest stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """A stage reported an error for a step and lives on; the sequences of that step fail, others do not notice."""

    step: int
    error: TeengineError
    blamed_ids: tuple[int, ...] = ()
    """Where some of the step's sequences are named, only these fail; the others compute again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLost:
    """Stages are gone, and with them the KV of every sequence. Nothing runs until `PipelineReady`."""

    error: TeengineError


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineReady:
    """All stages are open and empty; steps count from 0 again."""

    computes_otherwise: bool = False
    """With other kernels than before: what is below the device is not what would be computed now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksFound:
    """The spool's files hold what an earlier deployment of the same settings left there. Told once, before anything."""

    blocks: tuple[KeptBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed; deadlines are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelOffered:
    """There is a draft model from now on, or none any more."""

    context_tokens: int
    """Longest prompt and answer together that it takes; 0: it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessArrived:
    """The draft model answered a `DraftWanted`."""

    sequence_id: int
    num_tokens: int
    """Those it was asked with."""
    token_ids: tuple[int, ...]
    """Each within the vocabulary; none where it failed."""


Event = (
    Submitted
    | Cancelled
    | Stopped
    | StepCompleted
    | StepFailed
    | SpoolReported
    | BlocksFound
    | PipelineLost
    | PipelineReady
    | Tick
    | DraftModelOffered
    | GuessArrived
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Send this step to every stage, in the order of the runs. Several may be in flight.

    One without parts brings blocks or slots back for sequences that are to go on.
    """

    step: int
    parts: tuple[SequencePart, ...]
    closed: tuple[int, ...] = ()
    opened: tuple[SequenceOpen, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    spooled: tuple[SlotCopy, ...] = ()
    restored: tuple[SlotCopy, ...] = ()
    moves: tuple[SlotMove, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftWanted:
    """Ask the draft model what follows; the next run waits for its `GuessArrived`."""

    sequence_id: int
    owner: str
    salt: bytes
    sampling: SamplingParams
    """Of the request: who draws alike guesses best."""
    tokens: tuple[int, ...]
    """All that are known."""
    num_wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Deliver a token."""

    sequence_id: int
    token: SampledToken
    silent: bool
    """An end-of-sequence or stop token: delivered, but not part of the text."""
    drafted: bool = False
    """It had been guessed, and took no step of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Hand over what was found out about a sequence's prompt."""

    sequence_id: int
    prompt_logprobs: PromptLogprobs | None = None
    vector: PooledVector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The sequence's one terminal event: a reason, or an error."""

    sequence_id: int
    reason: FinishReason | None = None
    error: TeengineError | None = None
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""


Instruction = Emit | Tell | End
