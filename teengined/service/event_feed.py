"""What moves a deployment on: events go to its scheduler, steps to its stages, tokens to its answers."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from teengined.core.errors import PluginError, TeengineError
from teengined.scheduler.events import Event, PipelineLost, Tick
from teengined.scheduler.scheduler import Scheduler
from teengined.service.answers import AnswerTable
from teengined.service.draft_model import DraftModel
from teengined.service.metrics.model_meter import ModelMeter
from teengined.service.pipeline import Pipeline

__all__ = ["EventFeed"]

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5


@dataclass(slots=True, kw_only=True, eq=False)
class EventFeed:
    """The one place where the scheduler is told of anything. Lives on one event loop; nothing here blocks."""

    name: str
    scheduler: Scheduler
    answers: AnswerTable
    pipeline: Pipeline
    meter: ModelMeter
    draft: DraftModel | None
    on_failed: Callable[[PluginError], None]
    """Called when no step can be chosen any more: the policy is broken."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Begin without anything under way."""
        self._idle.set()

    def advance(self, *events: Event) -> None:
        """Feed events, send the steps that follow from them, and only then the chunks: the stages wait for steps.

        Raises:
            QueueFull, QuotaExceeded: for `Submitted` only; nothing changed.
        """
        now = time.monotonic()
        pending = deque(events)
        try:
            while pending or (pending := deque(self.answers.flush())):
                self._feed(pending, now)
                for run in self.scheduler.next_runs(now):
                    self.answers.begin(run, now)
                    self.meter.note_run(run, now)
                    self.pipeline.run(run)
                for wanted in self.scheduler.next_drafts():
                    assert self.draft is not None, "guesses are wanted of a draft model that was never offered"
                    self.draft.ask(wanted)
        except PluginError as error:
            self.on_failed(error)
        self.note_idle()

    def _feed(self, pending: deque[Event], now: float) -> None:
        while pending:
            event = pending.popleft()
            instructions = self.scheduler.handle(event, now)
            self.meter.note_event(event, now)
            for instruction in instructions:
                self.meter.note_instruction(instruction, now)
                pending.extend(self.answers.obey(instruction, now))

    def end_everything(self, error: TeengineError) -> None:
        """Fail every answer, also those that a lost pipeline would leave waiting; nothing will run any more."""
        self.pipeline.abandon()
        for event in (PipelineLost(error=error), *self.answers.cancel_all()):
            with contextlib.suppress(PluginError):  # Its policy may be what failed.
                self.scheduler.handle(event, time.monotonic())
        self.answers.fail_all(error)
        self.meter.forget_sequences()
        self.note_idle()

    def note_busy(self) -> None:
        """Note that an answer is under way."""
        self._idle.clear()

    def note_idle(self) -> None:
        """Wake who waits for it, if nothing is under way any more."""
        if self.answers.is_empty and not self.pipeline.busy:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no answer is under way or being read, nor a step whose answers were cancelled."""
        await self._idle.wait()

    async def tick(self) -> None:
        """Let time pass for the scheduler until cancelled."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                self.advance(Tick())
            except Exception:  # Without ticks no deadline would be held any more.
                logger.exception("%s: a tick failed", self.name)
