"""The scheduler of one deployment: a state machine that turns events into instructions.

    Submitted ──> waiting ──(slot free)──> running ──> End
                     │                        │
                     └── Cancelled, deadline, PipelineLost ──> End (exactly one for each Submitted)

A sequence that ends while it is part of the step in flight keeps its slot until that step is over, because the stages
still hold its KV.
"""

from dataclasses import dataclass, field
from typing import assert_never

from teengined.core.errors import DeadlineExceeded, InternalError, QueueFull, TeengineError
from teengined.core.request import FinishReason
from teengined.interfaces.policy import SchedulingPolicy
from teengined.protocol.worker_messages import SequenceStep
from teengined.scheduler.batch import compose_step, in_policy_order
from teengined.scheduler.events import (
    Cancelled,
    Emit,
    End,
    Event,
    Forget,
    Instruction,
    PipelineLost,
    PipelineReady,
    Run,
    StepCompleted,
    StepFailed,
    Submitted,
    Tick,
)
from teengined.scheduler.sequence import Sequence

__all__ = ["Scheduler", "SchedulerLimits"]

# Weight of the newest request in the running mean that the retry hint is made of.
_MEAN_WEIGHT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one deployment."""

    num_slots: int
    max_waiting: int
    max_step_tokens: int


@dataclass(slots=True)
class Scheduler:
    """Sequences of one deployment. Not for concurrent use; the shell feeds events one after the other."""

    policy: SchedulingPolicy
    limits: SchedulerLimits
    ready: bool = True
    """False until `PipelineReady`: sequences are taken and wait."""
    _sequences: dict[int, Sequence] = field(default_factory=dict[int, Sequence])
    _in_flight: Run | None = None
    _next_step: int = 0
    _mean_seconds: float = 1.0

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return sum(not sequence.running for sequence in self._sequences.values())

    @property
    def num_running(self) -> int:
        """Sequences with a slot whose end is not out yet."""
        return sum(sequence.running and not sequence.ended for sequence in self._sequences.values())

    def handle(self, event: Event, now_seconds: float) -> tuple[Instruction, ...]:
        """Take an event in and return what to do, in order. `now_seconds` is monotonic.

        Raises:
            QueueFull: for `Submitted` only; nothing changed, and the error says when to try again.
            PluginError: the policy broke its contract.
        """
        match event:
            case Submitted():
                instructions = self._submit(event, now_seconds)
            case Cancelled():
                instructions = self._end(self._live(event.sequence_id), reason=FinishReason.CANCELLED)
            case StepCompleted():
                instructions = self._complete(event, now_seconds)
            case StepFailed():
                instructions = self._fail_step(event)
            case PipelineLost():
                instructions = self._lose(event)
            case PipelineReady():
                self.ready, self._next_step = True, 0
                instructions = []
            case Tick():
                instructions = self._expire(now_seconds)
            case _:
                assert_never(event)
        return (*instructions, *self._next_run(now_seconds))

    def _submit(self, event: Submitted, now_seconds: float) -> list[Instruction]:
        num_free = self.limits.num_slots - sum(sequence.running for sequence in self._sequences.values())
        if self.num_waiting >= self.limits.max_waiting + (num_free if self.ready else 0):
            seconds = self._mean_seconds * (1 + self.num_waiting / self.limits.num_slots)
            raise QueueFull(
                f"{self.num_waiting} requests wait already; the limit is {self.limits.max_waiting}",
                hint="try again later, or raise limits.max_waiting",
                retry_after_seconds=round(seconds, 3),
            )
        self._sequences[event.sequence_id] = Sequence(submitted=event, arrived_seconds=now_seconds)
        return []

    def _live(self, sequence_id: int) -> list[Sequence]:
        sequence = self._sequences.get(sequence_id)
        return [sequence] if sequence is not None and not sequence.ended else []

    def _end(
        self, sequences: list[Sequence], *, reason: FinishReason | None = None, error: TeengineError | None = None
    ) -> list[Instruction]:
        """End sequences; those in the step in flight stay until it is over."""
        busy = {part.sequence_id for part in self._in_flight.sequences} if self._in_flight else set[int]()
        forgotten: list[int] = []
        for sequence in sequences:
            sequence.ended = True
            sequence_id = sequence.submitted.sequence_id
            if sequence_id not in busy:
                del self._sequences[sequence_id]
                if sequence.num_computed:
                    forgotten.append(sequence_id)
        ends = [End(sequence_id=item.submitted.sequence_id, reason=reason, error=error) for item in sequences]
        return [*ends, Forget(sequence_ids=tuple(forgotten))] if forgotten else [*ends]

    def _complete(self, event: StepCompleted, now_seconds: float) -> list[Instruction]:
        if self._in_flight is None or event.step != self._in_flight.step:
            return []  # An answer of stages that were lost since.
        parts, instructions = self._finish_step(self._in_flight)
        tokens = {token.sequence_id: token.token_id for token in event.tokens}
        for part in parts:
            for sequence in self._live(part.sequence_id) if part.sample else []:
                token_id = tokens.get(part.sequence_id)
                if token_id is None:
                    error = InternalError(f"the last stage drew no token in step {event.step}")
                    instructions += self._end([sequence], error=error)
                else:
                    instructions += self._emit(sequence, token_id, now_seconds)
        return instructions

    def _fail_step(self, event: StepFailed) -> list[Instruction]:
        if self._in_flight is None or event.step != self._in_flight.step:
            return []
        parts, instructions = self._finish_step(self._in_flight)
        failed = [sequence for part in parts for sequence in self._live(part.sequence_id)]
        return [*instructions, *self._end(failed, error=event.error)]

    def _finish_step(self, run: Run) -> tuple[tuple[SequenceStep, ...], list[Instruction]]:
        """Return the step's parts, after freeing the slots of sequences that ended meanwhile."""
        self._in_flight = None
        forgotten = tuple(part.sequence_id for part in run.sequences if self._sequences[part.sequence_id].ended)
        for sequence_id in forgotten:
            del self._sequences[sequence_id]
        return run.sequences, [Forget(sequence_ids=forgotten)] if forgotten else []

    def _emit(self, sequence: Sequence, token_id: int, now_seconds: float) -> list[Instruction]:
        submitted = sequence.submitted
        sequence.emitted.append(token_id)
        stopped = token_id in submitted.eos_token_ids and not submitted.sampling.ignore_eos
        emitted = Emit(sequence_id=submitted.sequence_id, token_id=token_id, silent=stopped)
        if not stopped and len(sequence.emitted) < submitted.sampling.max_tokens:
            return [emitted]
        seconds = now_seconds - sequence.arrived_seconds
        self._mean_seconds += _MEAN_WEIGHT * (seconds - self._mean_seconds)
        return [emitted, *self._end([sequence], reason=FinishReason.STOP if stopped else FinishReason.LENGTH)]

    def _lose(self, event: PipelineLost) -> list[Instruction]:
        self.ready, self._in_flight = False, None
        live = [sequence for sequence in self._sequences.values() if not sequence.ended]
        self._sequences.clear()  # Nothing to forget: the KV is gone with the stages.
        return [End(sequence_id=sequence.submitted.sequence_id, error=event.error) for sequence in live]

    def _expire(self, now_seconds: float) -> list[Instruction]:
        late = [
            sequence
            for sequence in self._sequences.values()
            if not sequence.ended and now_seconds >= sequence.submitted.deadline_seconds
        ]
        message = "the request did not finish within its time"
        return self._end(late, error=DeadlineExceeded(message, hint="ask for more time or fewer tokens"))

    def _next_run(self, now_seconds: float) -> list[Instruction]:
        if not self.ready or self._in_flight is not None or not self._sequences:
            return []
        ordered = in_policy_order(self.policy, self._sequences.values(), now_seconds)
        num_free = self.limits.num_slots - sum(sequence.running for sequence in ordered)
        for sequence in [item for item in ordered if not item.running][: max(0, num_free)]:
            sequence.running = True
        parts = compose_step(ordered, self.limits.max_step_tokens)
        if not parts:
            return []
        self._in_flight = Run(step=self._next_step, sequences=parts)
        self._next_step += 1
        return [self._in_flight]
