"""Messages between a daemon and its own workers, over a private socket in the runtime directory.

    daemon -> worker                     worker -> daemon
                                         WorkerHello (once, with the token it was started with)
    OpenStage                            StageProgress …, StageOpened | WorkerError
    RunStep                              StepDone (from the last stage) | WorkerError
    ForgetSequences                      (nothing)
    CloseStage                           StageClosed
    Ping                                 Pong
    Shutdown                             (the process ends)

Stages of one deployment are chained: every stage worker gets the same `RunStep`; stage 0 embeds, each passes its
activations to the next through the transport named in the plan, the last one samples and answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from teengined.core.plan import Stage

__all__ = [
    "WORKER_MESSAGES",
    "CloseStage",
    "ForgetSequences",
    "OpenStage",
    "Ping",
    "Pong",
    "RunStep",
    "SampledToken",
    "SequenceStep",
    "Shutdown",
    "StageClosed",
    "StageOpened",
    "StageProgress",
    "StepDone",
    "WorkerError",
    "WorkerHello",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHello:
    """The first message of a worker."""

    token: str
    """From its environment; proves that the daemon started it."""
    device_id: str
    pid: int
    library_versions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStage:
    """Build one stage of a deployment and read its resident units."""

    deployment_id: str
    package_dir: str
    stage: Stage
    num_stages: int
    context_tokens: int
    num_slots: int
    listen_address: str
    """Where this stage receives activations; empty on stage 0."""
    listen_transport: str
    connect_address: str
    """Where it sends them; empty on the last stage."""
    connect_transport: str
    max_step_tokens: int
    verify: bool
    timeout_seconds: float
    """Longest wait for a neighbour, in opening and in every step."""
    read_threads: int
    read_chunk_bytes: int
    ring_slots: int
    direct_io: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgress:
    """Bytes of resident units read so far."""

    deployment_id: str
    stage_index: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOpened:
    """The stage can step."""

    deployment_id: str
    stage_index: int
    allocated_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStep:
    """Part of one sequence to run in this step."""

    sequence_id: int
    token_ids: tuple[int, ...]
    start_position: int
    """Position of the first of them; 0 opens the sequence's KV."""
    sample: bool
    """True where the last token's logits are wanted: the last prefill chunk and every decode step."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    choice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """One step of a deployment's pipeline."""

    deployment_id: str
    step: int
    """Counts from 0 without gap; also the tag of the step's activations."""
    sequences: tuple[SequenceStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """The token drawn for a sequence."""

    sequence_id: int
    token_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A stage has finished a step. Only the last stage has tokens."""

    deployment_id: str
    stage_index: int
    step: int
    tokens: tuple[SampledToken, ...]
    seconds: float
    """From the activation's arrival to its departure."""
    compute_seconds: float
    stall_seconds: float
    """Waiting for streamed units."""
    streamed_bytes: int
    read_seconds: float = 0.0
    """Time since the last step in which streamed units were being read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetSequences:
    """Free the KV of sequences that ended."""

    deployment_id: str
    sequence_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStage:
    """Free the stage."""

    deployment_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageClosed:
    """The stage's memory is free again."""

    deployment_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerError:
    """Something failed inside the worker, which lives on."""

    deployment_id: str
    step: int | None
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Are you there?"""

    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """Yes."""

    nonce: int
    rss_bytes: int
    allocated_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Close everything and end."""


WORKER_MESSAGES: Mapping[str, type] = {
    "worker_hello": WorkerHello,
    "open_stage": OpenStage,
    "stage_progress": StageProgress,
    "stage_opened": StageOpened,
    "run_step": RunStep,
    "step_done": StepDone,
    "forget_sequences": ForgetSequences,
    "close_stage": CloseStage,
    "stage_closed": StageClosed,
    "worker_error": WorkerError,
    "ping": Ping,
    "pong": Pong,
    "shutdown": Shutdown,
}
