"""The answers of one deployment: what the scheduler tells of a sequence finds the answer that it belongs to."""

import logging
from dataclasses import dataclass, field, replace

from teengined.core.errors import InternalError, SlowReader, TeengineError
from teengined.core.request import FinishReason
from teengined.protocol.messages import RequestItem
from teengined.scheduler.events import Cancelled, Emit, End, Event, Instruction, Run, Stopped, Tell
from teengined.service.answer import Answer
from teengined.service.choice import Choice
from teengined.service.pipeline import FinishedStep
from teengined.service.speed import SpeedMeter

__all__ = ["AnswerTable"]

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class AnswerTable:
    """Sequences with their answers. Obeying an instruction may make events that the scheduler must hear next."""

    speed: SpeedMeter
    _live: dict[int, tuple[Answer, Choice]] = field(default_factory=dict[int, tuple[Answer, Choice]])
    """By sequence, until its end."""
    _open: dict[str, Answer] = field(default_factory=dict[str, Answer])
    """By request, until its caller lets go of it: it may be over while chunks of it wait for their reader."""
    _changed: dict[str, Answer] = field(default_factory=dict[str, Answer])
    """Answers that may have chunks to send."""

    def add(self, answer: Answer) -> None:
        """Take an answer in."""
        self._open[answer.request_id] = answer
        for choice in answer.choices:
            self._live[choice.sequence_id] = (answer, choice)

    def take_back(self, answer: Answer) -> None:
        """Undo `add`: the scheduler did not take it."""
        for choice in answer.choices:
            self._live.pop(choice.sequence_id, None)
        self._open.pop(answer.request_id, None)

    def release(self, answer: Answer) -> None:
        """Note that nobody looks at the answer any more."""
        self._open.pop(answer.request_id, None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._live and not self._open

    def describe(self, now_seconds: float) -> tuple[RequestItem, ...]:
        """Return the requests under way, oldest first."""
        return tuple(answer.describe(now_seconds) for answer in self._open.values())

    def obey(self, instruction: Instruction, now_seconds: float) -> list[Event]:
        """Do what the scheduler says, and return what it must hear of that. What goes wrong ends that answer alone."""
        found = self._live.get(instruction.sequence_id)
        if found is None:
            return []
        try:
            return self._obey(*found, instruction, now_seconds)
        except Exception as error:  # noqa: BLE001 - others' instructions follow, which no mistake may swallow
            return self._contain(found[0], error)

    def _obey(self, answer: Answer, choice: Choice, instruction: Instruction, now_seconds: float) -> list[Event]:
        match instruction:
            case Emit() if choice.stopped:
                return []  # Drawn in the same step as what completed the stop text.
            case Emit():
                answer.emit(choice, instruction, now_seconds)
                self._changed[answer.request_id] = answer
                return [Stopped(sequence_id=choice.sequence_id)] if choice.stopped else []
            case Tell():
                answer.tell(instruction)
                return []
            case End():
                del self._live[choice.sequence_id]
                if choice.stopped:  # Whatever came of the tokens behind it.
                    instruction = replace(instruction, reason=FinishReason.STOP, error=None)
                return self._end(answer, choice, instruction, now_seconds)

    def begin(self, run: Run, now_seconds: float) -> None:
        """Note which answers a step takes up."""
        for part in run.parts:
            if found := self._live.get(part.sequence_id):
                found[0].account.begin(now_seconds, part.start_position)

    def note_streamed(self, step: FinishedStep) -> None:
        """Share the weights that a step moved among its sequences."""
        num_bytes = sum(part.streamed_bytes for part in step.parts)
        for part in step.run.parts if num_bytes else ():
            if found := self._live.get(part.sequence_id):
                found[0].account.note_streamed(num_bytes / len(step.run.parts))

    def flush(self) -> list[Event]:
        """Send the chunks that may leave; fail answers whose reader left too much waiting."""
        changed, self._changed = self._changed, {}
        events: list[Event] = []
        for answer in changed.values():
            try:
                events += self._flush(answer)
            except Exception as error:  # noqa: BLE001 - as in `obey`
                events += self._contain(answer, error)
        return events

    def grant(self, answer: Answer, num_chunks: int) -> list[Event]:
        """Let more chunks of an answer go, and return what the scheduler must hear of that."""
        try:
            if answer.stream is not None:
                answer.stream.grant(num_chunks)
        except Exception as error:  # noqa: BLE001 - as in `obey`
            return self._contain(answer, error)
        return []

    def _flush(self, answer: Answer) -> list[Event]:
        answer.flush()
        if not answer.too_slow:
            return []
        error = SlowReader(
            "more of the answer waits for its reader than the daemon keeps",
            hint="read faster, grant more chunks, or raise batching.max_stream_buffer",
        )
        return self.fail(answer, error)

    def _contain(self, answer: Answer, error: Exception) -> list[Event]:
        """Fail an answer that could not be gone on with."""
        if isinstance(error, TeengineError):
            return self.fail(answer, error)
        logger.error("request %s cannot go on", answer.request_id, exc_info=error)
        return self.fail(answer, InternalError(f"the answer could not be told: {type(error).__name__}"))

    def fail(self, answer: Answer, error: TeengineError) -> list[Event]:
        """End an answer with an error, and return what takes its sequences off the stages."""
        answer.fail(error)
        return self.cancel(answer)

    def fail_all(self, error: TeengineError) -> None:
        """End every answer with an error and forget the sequences: there is no scheduler that would end them."""
        for answer, _ in self._live.values():
            answer.fail(error)
        self._live.clear()

    def cancel(self, answer: Answer) -> list[Event]:
        """Return what takes the sequences of an answer off the stages."""
        sequence_ids = [choice.sequence_id for choice in answer.choices if choice.sequence_id in self._live]
        return [Cancelled(sequence_id=sequence_id) for sequence_id in sequence_ids]

    def cancel_all(self) -> list[Event]:
        """Return what takes every sequence off the stages."""
        return [Cancelled(sequence_id=sequence_id) for sequence_id in self._live]

    def _end(self, answer: Answer, choice: Choice, end: End, now_seconds: float) -> list[Event]:
        if end.error is not None:
            return self.fail(answer, end.error)
        if choice.index == 0:
            answer.account.num_cached_tokens = end.cached_tokens
        is_last = answer.end_choice(choice, end.reason or FinishReason.STOP)
        self._changed[answer.request_id] = answer
        if is_last and not answer.ended.done():
            usage = answer.account.usage(now_seconds, self.speed.compute_seconds, self.speed.disk_bytes_per_second)
            answer.finish(usage)
            if all(item.reason is not FinishReason.CANCELLED for item in answer.choices):
                self.speed.note(usage, len(answer.choices))
        return []
