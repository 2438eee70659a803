"""Messages between a daemon and its own workers, over a private socket in the runtime directory.

    daemon -> worker                     worker -> daemon
                                         WorkerHello (once, with the token it was started with)
    OpenStage                            StageProgress …, StageOpened | WorkerError
    RunStep                              StepDone (from every stage; the last one's has the tokens) | WorkerError
                                         SpoolReport … (when moves of a RunStep are over)
    CloseStage                           StageClosed
    Ping                                 Pong
    Shutdown                             (the process ends)

Stages of one deployment are chained: every stage worker gets the same `RunStep`; stage 0 embeds, each passes its
activations to the next through the transport named in the plan, the last one samples and answers. Several steps may be
under way; every stage runs them in the order in which they were sent.

A `RunStep` tells what changed, not how things stand: a worker keeps each sequence's block table, its parameters and,
where they matter, its tokens, from the step that opens the sequence to the one that closes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from teengined.core.plan import Stage
from teengined.core.request import Goal, TokenLogprobs
from teengined.core.sampling import SamplingParams
from teengined.protocol.codec import CodecLimits

__all__ = [
    "WORKER_LIMITS",
    "WORKER_MESSAGES",
    "BlockCopy",
    "CloseStage",
    "ExpertCounts",
    "OpenStage",
    "Ping",
    "Pong",
    "PooledVector",
    "PromptLogprobs",
    "RunStep",
    "SampledToken",
    "SequenceOpen",
    "SequencePart",
    "Shutdown",
    "SlotCopy",
    "SlotMove",
    "SpoolReport",
    "StageClosed",
    "StageOpened",
    "StageProgress",
    "StepDone",
    "WorkerError",
    "WorkerHello",
]

WORKER_LIMITS = CodecLimits(max_message_bytes=256 << 20, max_items=1 << 26)
"""Both ends trust each other, so this only stops a mistake. One step may open every running sequence with its history,
at most 5 bytes a token and once for each choice: 256 of 100,000 tokens take half of it. A step that is larger ends its
deployment's sequences, for it also tells what was closed and copied, without which no later step is right."""


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
    num_blocks: int
    """Of the KV pool, the same on every stage; ids count from 0."""
    block_tokens: int
    kv_dtype: str = "auto"
    """`auto`: the stage's compute dtype; or `int8`."""
    numerics: str = "default"
    """`strict`: a position's logits do not depend on batch mates, chunking, cache hits or threads."""
    expert_policy: str = "auto"
    """Which routed experts give way in a cache: `lru`, `lfu`, `pinned`, `sticky`, or `auto`: what suits best."""
    expert_guesses: int = 0
    """Experts of a layer that may be read on its router's guess, before it asks, where it measures faster; 0: none."""
    num_host_slots: int = 0
    """Of host memory for contents of blocks; ids count from 0. Memory is taken as slots are used."""
    num_disk_slots: int = 0
    spool_path: str = ""
    """The stage's spool file, in a private directory; it may hold what an earlier worker wrote."""
    host_pool_path: str = ""
    """Socket of the daemon's pool of host memory (`pool_messages`); empty: the worker keeps units of tier `host` in
    memory of its own."""
    host_pool_ticket: str = ""
    lock_host_pool: bool = False
    """Keep these units from being swapped out, as far as the limit on locked memory allows."""


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
    kernels: str = ""
    """Which kernels it computes with: between others, results differ in their last bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOpen:
    """What a worker must know of a sequence before its first part; told again after a preemption, which closed it."""

    sequence_id: int
    num_prompt_tokens: int
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    """Not drawn before `sampling.min_tokens`, nor where a grammar does not allow the end."""
    choice: int = 0
    goal: Goal = Goal.GENERATE
    pooling: str = ""
    """Of an embedding: `mean` or `last`."""
    score_start: int = 0
    """Prompt log-probabilities are wanted of the tokens at this position and after it (never of position 0)."""
    history: tuple[int, ...] = ()
    """All tokens that are known already, prompt first, where `sampling.uses_history`: some come from the prefix cache
    or from before a preemption, so that no part will bring them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencePart:
    """Tokens of one sequence to run in this step."""

    sequence_id: int
    token_ids: tuple[int, ...]
    start_position: int
    """Position of the first of them. Above 0 in a sequence's first part where the prefix cache had what is before."""
    new_blocks: tuple[int, ...] = ()
    """Appended to the sequence's block table before the part runs; in a first part the whole table."""
    sample: bool = False
    """True where a token is to be drawn from the last row: the last prefill chunk and every decode step."""
    num_drafted: int = 0
    """So many of the tokens, the last ones, are guesses to be verified: a token is drawn from each row from the one
    before the first guess on, in order, for as long as the token drawn is the one that was guessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCopy:
    """Before the step's parts run, copy a block's keys and values in every layer, and let the table have the copy."""

    sequence_id: int
    index: int
    """Place in the sequence's block table, which is `target` from now on."""
    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCopy:
    """A block and a slot of the stage's host memory: the keys and values of every layer go from one to the other."""

    block: int
    slot: int
    num_tokens: int
    """Of the block, from its start, that are of use. A restored block holds nothing after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMove:
    """Bytes to go between a slot of the stage's host memory and one of its spool file, beside the steps."""

    host: int
    disk: int
    to_disk: bool
    digests: tuple[bytes, ...] = ()
    """By stage: what the bytes on disk must be. Of a write they are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """One step of a deployment's pipeline.

    Order of execution: closed, opened, spooled, new blocks, restored, copies, parts. Moves begin after what is spooled.
    """

    deployment_id: str
    step: int
    """Counts from 0 without gap; also the tag of the step's activations."""
    parts: tuple[SequencePart, ...]
    closed: tuple[int, ...] = ()
    """Sequences that ended or were preempted: the worker forgets them; their blocks may be anyone's from here on."""
    opened: tuple[SequenceOpen, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    spooled: tuple[SlotCopy, ...] = ()
    """Blocks to copy into slots, as they are before this step."""
    restored: tuple[SlotCopy, ...] = ()
    """Slots to copy into blocks."""
    moves: tuple[SlotMove, ...] = ()
    """To begin; each is told of by a `SpoolReport` when it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """A token drawn for a sequence, or the fault that kept it from being drawn.

    Several of one sequence, in order, where guesses were right: what follows a wrong guess or a fault is not drawn.
    """

    sequence_id: int
    token_id: int
    """-1 with a fault."""
    logprobs: TokenLogprobs | None = None
    fault: str = ""
    """Wire code of an error, such as `numerical_fault`: this sequence fails, its neighbours do not."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """Log-probabilities of consecutive prompt tokens of a sequence, from one step."""

    sequence_id: int
    start_position: int
    """Position of the first token told of."""
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledVector:
    """The embedding of a sequence's prompt, in the step that ran its last token."""

    sequence_id: int
    vector: bytes
    """fp32, little-endian, not normalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCounts:
    """What the expert caches of a stage did since it was opened. Counts are of experts that a layer asked for."""

    policy: str
    """That decides now who gives way."""
    num_asked: int
    num_hits: int
    num_best_hits: int
    """Of a cache that knows the future (Belady's), on the same requests."""
    num_simulated_hits: int
    """Of the policy's own simulation, on the same requests."""
    read_bytes: int
    """Of experts that were asked for."""
    num_guessed: int = 0
    """Experts whose reads began on a guess; to the cache they are missed all the same."""
    num_guessed_right: int = 0
    wrong_guess_bytes: int = 0
    """Read besides, for what nobody asked for then."""
    is_guessing: bool = False
    """Whether steps with guesses measured faster than those without."""


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
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    vectors: tuple[PooledVector, ...] = ()
    experts: ExpertCounts | None = None
    """None where no expert is streamed."""
    copy_seconds: float = 0.0
    """Copying blocks to and from slots, before the step's own work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolReport:
    """Moves of a stage that are over, in the order in which they ended."""

    deployment_id: str
    stage_index: int
    done: tuple[SlotMove, ...] = ()
    """Those that were written have this stage's digest alone."""
    failed: tuple[SlotMove, ...] = ()
    problem: str = ""
    """Why the last of them failed."""
    fetch_seconds: float = 0.0
    """Of all fetches among them together, one after another."""


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
    blamed_ids: tuple[int, ...] = ()
    """Sequences of the step that asked for an expert which could not be had. The stage can go on without them, and the
    others of the step can run again. Empty: all failed, and the error says whether the stage can go on."""


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
    "spool_report": SpoolReport,
    "close_stage": CloseStage,
    "stage_closed": StageClosed,
    "worker_error": WorkerError,
    "ping": Ping,
    "pong": Pong,
    "shutdown": Shutdown,
}
