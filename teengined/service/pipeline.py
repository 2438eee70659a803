"""The steps of one deployment on their way through its stages: sent, reported by each stage, over."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from teengined.core.errors import DeadlineExceeded, InternalError, TeengineError, TransportError
from teengined.protocol.worker_messages import StepDone
from teengined.scheduler.events import Run, StepCompleted, StepFailed
from teengined.service.bubbles import PipelineMeter
from teengined.service.spool_reports import SpoolReports
from teengined.service.stages import StageSet
from teengined.service.workers import WorkerPool

__all__ = ["FinishedStep", "Pipeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStep:
    """A step that every stage has reported."""

    run: Run
    parts: tuple[StepDone, ...]
    """Of the stages that finished it; all of them, unless `error` is set."""
    last: StepDone | None
    """Of the last stage, which has the tokens."""
    error: TeengineError | None
    blamed_ids: tuple[int, ...] = ()
    """As in `WorkerError`: the stages can go on without these sequences."""

    @property
    def event(self) -> StepCompleted | StepFailed:
        """What the scheduler must hear."""
        if self.error is not None or self.last is None:
            error = self.error or InternalError("the last stage said nothing")
            return StepFailed(step=self.run.step, error=error, blamed_ids=self.blamed_ids)
        return StepCompleted(
            step=self.run.step,
            tokens=self.last.tokens,
            prompt_logprobs=self.last.prompt_logprobs,
            vectors=self.last.vectors,
            seconds=max(part.seconds for part in self.parts),
            copy_seconds=max(part.copy_seconds for part in self.parts),
        )


@dataclass(slots=True, kw_only=True)
class _StepInFlight:
    run: Run
    reports: dict[int, StepDone | None] = field(default_factory=dict[int, StepDone | None])
    """By stage; None where it failed."""
    error: TeengineError | None = None
    blamed_ids: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Pipeline:
    """Sends steps and gathers what the stages say of them. Stages run steps in the order in which they were sent."""

    stages: StageSet
    pool: WorkerPool
    step_timeout: float
    on_finished: Callable[[FinishedStep], None]
    on_broken: Callable[[TeengineError], None]
    """Called when no step can follow: the oldest took too long (workers that did not finish it are being killed), or
    one could not be sent."""
    meter: PipelineMeter = field(init=False)
    spool_reports: SpoolReports = field(init=False)
    _steps: dict[int, _StepInFlight] = field(default_factory=dict[int, _StepInFlight])
    """Oldest first."""
    _deadline: "asyncio.TimerHandle | None" = None

    def __post_init__(self) -> None:
        """Meter the stages."""
        self.meter = PipelineMeter(len(self.stages.device_ids))
        self.spool_reports = SpoolReports(num_stages=len(self.stages.device_ids))

    @property
    def busy(self) -> bool:
        """Whether a step is under way."""
        return bool(self._steps)

    def run(self, run: Run) -> None:
        """Give a step to every stage."""
        self._steps[run.step] = _StepInFlight(run=run)
        self.spool_reports.expect(run.moves)
        self.meter.start(time.monotonic())
        if self._deadline is None:
            self._watch_oldest()
        try:
            self.stages.run(run)
        except TeengineError as error:
            # Too large, and nothing was sent. What it closes, opens and copies would be lost, and the stages' tables
            # with it, so failing this step alone would make every later one wrong.
            asyncio.get_running_loop().call_soon(self.on_broken, error)

    def abandon(self) -> None:
        """Forget the steps under way: their stages are lost, or about to be closed."""
        self._steps.clear()
        self.spool_reports.abandon()
        self.meter.abandon()
        self._watch_oldest()

    def on_step_done(self, device_id: str, done: StepDone) -> None:
        """Take a stage's report; one of a step that was given up is dropped."""
        if (step := self._steps.get(done.step)) is not None:
            self.pool.note_progress(device_id)
            self._report(device_id, step, done)

    def on_step_error(
        self, device_id: str, number: int, error: TeengineError, blamed_ids: tuple[int, ...] = ()
    ) -> None:
        """Take a stage's failure at a step, and which of its sequences are to blame."""
        if (step := self._steps.get(number)) is not None:
            if step.error is None or isinstance(step.error, TransportError):
                step.error = error  # A stage that failed knows why; its neighbours only that it did.
                step.blamed_ids = blamed_ids
            self._report(device_id, step, None)

    def _report(self, device_id: str, step: _StepInFlight, done: StepDone | None) -> None:
        """End the step once every stage has reported: then each is ready for the next, and the account is complete."""
        num_stages = len(self.stages.device_ids)
        step.reports[self.stages.index_of(device_id)] = done
        if len(step.reports) < num_stages:
            return
        del self._steps[step.run.step]
        self._watch_oldest()
        reports = [step.reports[index] for index in range(num_stages)]
        busy = [0.0 if report is None else report.seconds for report in reports]
        last = reports[-1]
        self.meter.finish(time.monotonic(), busy, 0 if last is None else len(last.tokens))
        parts = tuple(report for report in reports if report is not None)
        self.on_finished(
            FinishedStep(run=step.run, parts=parts, last=last, error=step.error, blamed_ids=step.blamed_ids)
        )

    def _watch_oldest(self) -> None:
        """Give the oldest step its time from now on: before, the stages were busy with the one ahead of it."""
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self.step_timeout, self._on_timeout) if self._steps else None

    def _on_timeout(self) -> None:
        self._deadline = None
        step = next(iter(self._steps.values()), None)
        if step is None:
            return
        for index, device_id in enumerate(self.stages.device_ids):
            if index not in step.reports:
                self.pool.kill(device_id, f"did not finish a step within {self.step_timeout:g} s")
        self.on_broken(DeadlineExceeded(f"a step took longer than {self.step_timeout:g} s"))
