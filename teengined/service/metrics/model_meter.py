"""What happened to the sequences of one deployment: a fold over the scheduler's events, runs and instructions. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from teengined.protocol.worker_messages import StepDone
from teengined.scheduler.events import Emit, End, Event, Instruction, Run, Submitted
from teengined.service.metrics.histogram import (
    FIRST_TOKEN_SECONDS,
    QUEUE_SECONDS,
    SHARED_ROWS,
    TOKEN_SECONDS,
    Histogram,
)

__all__ = ["ModelMeter", "StageTotals"]


@dataclass(slots=True, kw_only=True)
class StageTotals:
    """What a stage reported, summed over its steps."""

    busy_seconds: float = 0.0
    compute_seconds: float = 0.0
    stall_seconds: float = 0.0
    """Of waiting for streamed weights."""
    streamed_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class _Request:
    submitted_seconds: float
    num_prompt_tokens: int
    has_started: bool = False
    has_token: bool = False


@dataclass(slots=True)
class _Sequence:
    request: _Request
    last_token_seconds: float = 0.0


@dataclass(slots=True)
class ModelMeter:
    """Counters of one deployment since its load. Times come in, monotonic."""

    num_stages: int
    num_prompt_tokens: int = 0
    """Of prompts that began to run."""
    num_cached_tokens: int = 0
    """Of these, such as the prefix cache had."""
    num_generated_tokens: int = 0
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(QUEUE_SECONDS))
    """From admission to the first step."""
    first_token_seconds: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    """From admission, once for each request."""
    inter_token_seconds: Histogram = field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    """Between the moments at which tokens of a sequence came."""
    step_seconds: Histogram = field(default_factory=lambda: Histogram(TOKEN_SECONDS))
    """Of the slowest stage."""
    step_rows: Histogram = field(default_factory=lambda: Histogram(SHARED_ROWS))
    step_sequences: Histogram = field(default_factory=lambda: Histogram(SHARED_ROWS))
    stages: tuple[StageTotals, ...] = field(init=False)
    _live: dict[int, _Sequence] = field(default_factory=dict[int, _Sequence])

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.stages = tuple(StageTotals() for _ in range(self.num_stages))

    def note_event(self, event: Event, now_seconds: float) -> None:
        """Take in what the scheduler was told, and took."""
        if isinstance(event, Submitted):
            request = _Request(submitted_seconds=now_seconds, num_prompt_tokens=len(event.prompt))
            self._live.update((sequence_id, _Sequence(request)) for sequence_id in event.sequence_ids)

    def note_run(self, run: Run, now_seconds: float) -> None:
        """Take in a step that goes to the stages."""
        self.step_rows.observe(sum(len(part.token_ids) for part in run.parts))
        self.step_sequences.observe(len(run.parts))
        for part in run.parts:
            sequence = self._live.get(part.sequence_id)
            if sequence is not None and not sequence.request.has_started:
                sequence.request.has_started = True
                self.queue_seconds.observe(now_seconds - sequence.request.submitted_seconds)
                self.num_prompt_tokens += sequence.request.num_prompt_tokens
                self.num_cached_tokens += part.start_position

    def note_instruction(self, instruction: Instruction, now_seconds: float) -> None:
        """Take in what the scheduler says of a sequence."""
        match instruction:
            case Emit():
                self.num_generated_tokens += 1
                if sequence := self._live.get(instruction.sequence_id):
                    self._note_token(sequence, now_seconds)
            case End():
                self._live.pop(instruction.sequence_id, None)
            case _:
                pass

    def _note_token(self, sequence: _Sequence, now_seconds: float) -> None:
        if not sequence.request.has_token:
            sequence.request.has_token = True
            self.first_token_seconds.observe(now_seconds - sequence.request.submitted_seconds)
        if 0 < sequence.last_token_seconds < now_seconds:
            self.inter_token_seconds.observe(now_seconds - sequence.last_token_seconds)
        sequence.last_token_seconds = now_seconds

    def note_step(self, reports: Sequence[StepDone]) -> None:
        """Take in what the stages say of a step that is over; of one that failed, those that finished it."""
        if len(reports) == self.num_stages:
            self.step_seconds.observe(max(report.seconds for report in reports))
        for report in reports:
            totals = self.stages[report.stage_index]
            totals.busy_seconds += report.seconds
            totals.compute_seconds += report.compute_seconds
            totals.stall_seconds += report.stall_seconds
            totals.streamed_bytes += report.streamed_bytes

    def forget_sequences(self) -> None:
        """Drop what is under way: all of it has ended, and no instruction will say so."""
        self._live.clear()
