"""One loaded model: the shell around its scheduler. Events go in, steps go to the stages, chunks to the clients."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from teengined.core.errors import (
    DeadlineExceeded,
    DriverError,
    PackageError,
    PluginError,
    TeengineError,
    TransportError,
    WorkerLost,
    error_class,
)
from teengined.core.model import ModelManifest
from teengined.core.request import FinishReason
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Deployment, TokenChunk
from teengined.protocol.worker_messages import SampledToken, StepDone, WorkerError
from teengined.scheduler.events import (
    Cancelled,
    Emit,
    End,
    Event,
    Forget,
    PipelineLost,
    PipelineReady,
    Run,
    StepCompleted,
    StepFailed,
    Submitted,
    Tick,
)
from teengined.scheduler.scheduler import Scheduler
from teengined.service.answer import Answer
from teengined.service.settings import LimitSettings, WorkerSettings
from teengined.service.speed import SpeedMeter
from teengined.service.stages import OnProgress, StageSet
from teengined.service.text import TextCodec
from teengined.service.workers import WorkerPool

__all__ = ["LoadedModel", "Submission"]

logger = logging.getLogger(__name__)

# Errors after which a stage cannot take another step: its weights, its device or its neighbour are not as they were.
_BREAKING = (PackageError, DriverError, TransportError, DeadlineExceeded)

_TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A validated request."""

    owner: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    timeout_seconds: float
    deliver: Callable[[TokenChunk], None]


@dataclass(slots=True, kw_only=True)
class _StepInFlight:
    run: Run
    deadline: asyncio.TimerHandle
    reported: set[int] = field(default_factory=set[int])
    parts: list[StepDone] = field(default_factory=list[StepDone])
    tokens: tuple[SampledToken, ...] = ()
    """What the last stage drew."""
    error: TeengineError | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A deployment from its plan to its unloading. Lives on one event loop; nothing here blocks."""

    id: str
    name: str
    package: str
    """Name in the store."""
    manifest: ModelManifest
    stages: StageSet
    text: TextCodec
    scheduler: Scheduler
    speed: SpeedMeter
    pool: WorkerPool
    limits: LimitSettings
    worker_settings: WorkerSettings
    state: str = "loading"
    problem: str = ""
    _answers: dict[int, Answer] = field(default_factory=dict[int, Answer])
    _next_sequence: int = 0
    _step: _StepInFlight | None = None
    _recovery: "asyncio.Task[None] | None" = None
    _ticker: "asyncio.Task[None] | None" = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, on_progress: OnProgress) -> None:
        """Open the stages for the first time.

        Raises:
            TeengineError: as `StageSet.open`; what was opened is closed again.
        """
        self._idle.set()
        self.pool.subscribe(self.id, self)
        try:
            await self.stages.open(on_progress)
        except BaseException:
            await asyncio.shield(self.close())
            raise
        self.state = "ready"
        self._feed(PipelineReady())
        self._ticker = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Fail what still runs and close the stages. Safe to call twice."""
        await self.abandon(WorkerLost(f"{self.name} was unloaded", hint=f"`teengine load {self.name}` loads it again"))
        await self.stages.close(self.worker_settings.stop_timeout)
        self.pool.unsubscribe(self.id)

    async def abandon(self, error: TeengineError) -> None:
        """Fail what still runs; the stages are left to the end of their workers."""
        self.state = "unloading"
        for task in (self._recovery, self._ticker):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._lose(error)

    @property
    def opened(self) -> bool:
        """Whether the first opening is over."""
        return self._ticker is not None

    def refuse_new(self) -> None:
        """Take no more requests; those under way go on."""
        self.state = "unloading"

    async def wait_idle(self) -> None:
        """Return when no answer is under way, nor a step whose answers were cancelled: its stages are busy still."""
        await self._idle.wait()

    @property
    def num_running(self) -> int:
        """Answers that hold a slot."""
        return self.scheduler.num_running

    @property
    def num_queued(self) -> int:
        """Answers that wait for one."""
        return self.scheduler.num_waiting

    def submit(self, submission: Submission) -> Answer:
        """Queue a request and return its answer, whose `ended` is the end.

        Raises:
            QueueFull: too many wait already.
            WorkerLost: the deployment has failed for good.
        """
        if self.state not in ("ready", "loading"):
            raise WorkerLost(f"{self.name} is {self.state}: {self.problem}", hint=f"`teengine load {self.name}` again")
        self._next_sequence += 1
        answer = Answer(
            request_id=secrets.token_hex(8),
            sequence_id=self._next_sequence,
            num_prompt_tokens=len(submission.prompt),
            detokenizer=self.text.detokenizer(),
            deliver=submission.deliver,
            ended=asyncio.get_running_loop().create_future(),
        )
        event = Submitted(
            sequence_id=answer.sequence_id,
            owner=submission.owner,
            prompt=submission.prompt,
            sampling=submission.sampling,
            eos_token_ids=frozenset(self.manifest.eos_token_ids),
            deadline_seconds=time.monotonic() + submission.timeout_seconds,
        )
        self._answers[answer.sequence_id] = answer
        self._idle.clear()
        try:
            self._feed(event)
        except TeengineError:
            self._drop(answer.sequence_id)
            raise
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer, which ends with reason `cancelled`; at the latest with the step in flight."""
        self._feed(Cancelled(sequence_id=answer.sequence_id))

    def describe(self) -> Deployment:
        """Return the deployment as `teengine ps` shows it."""
        return Deployment(
            id=self.id,
            model=self.name,
            state=self.state,
            plan=self.stages.plan,
            size_bytes=self.manifest.size_bytes,
            precision=self.manifest.precision,
            num_running=self.num_running,
            num_queued=self.num_queued,
            num_completed=self.speed.num_completed,
            tokens_per_second=self.speed.tokens_per_second,
            bound_tokens_per_second=self.speed.bound_tokens_per_second,
            problem=self.problem,
        )

    def on_message(self, device_id: str, message: Any) -> None:
        """Take what a worker says about this deployment."""
        if isinstance(message, StepDone):
            self._on_step_done(device_id, message)
        elif isinstance(message, WorkerError):
            self._on_worker_error(device_id, message)
        else:
            self.stages.take(device_id, message)

    def on_worker_lost(self, device_id: str, error: WorkerLost) -> None:
        """Fail what runs and begin to recover, if one of the stages was there."""
        if device_id not in self.stages.device_ids or self.stages.fail(device_id, error):
            return
        if self.state in ("ready", "unloading"):
            self._begin_recovery(error)

    def _feed(self, event: Event) -> None:
        now = time.monotonic()
        try:
            instructions = self.scheduler.handle(event, now)
        except PluginError as error:
            self._give_up(error)
            return
        for instruction in instructions:
            match instruction:
                case Run():
                    self._run(instruction, now)
                case Forget():
                    self.stages.forget(instruction.sequence_ids)
                case Emit():
                    answer = self._answers[instruction.sequence_id]
                    answer.emit(instruction.token_id, now, silent=instruction.silent)
                case End():
                    self._end(instruction)

    def _give_up(self, error: PluginError) -> None:
        """Fail everything: with a broken policy no step can be chosen any more."""
        logger.error("%s: %s", self.name, error.message)
        self.state, self.problem = "failed", error.message
        self._lose(error)  # Empties the scheduler too, which then has nothing to ask the policy about.
        for sequence_id in tuple(self._answers):  # Their ends were lost with the instructions.
            self._drop(sequence_id).fail(error)

    def _run(self, run: Run, now: float) -> None:
        loop = asyncio.get_running_loop()
        self._step = _StepInFlight(run=run, deadline=loop.call_later(self.limits.step_timeout, self._on_step_timeout))
        for part in run.sequences:
            self._answers[part.sequence_id].begin(now)
        self.stages.run(run)

    def _end(self, end: End) -> None:
        answer = self._drop(end.sequence_id)
        if end.error is not None:
            answer.fail(end.error)
            return
        reason = end.reason or FinishReason.STOP
        answer.finish(reason, self.speed.compute_seconds, self.speed.disk_bytes_per_second)
        if reason is not FinishReason.CANCELLED:
            self.speed.note(answer.ended.result().usage)

    def _drop(self, sequence_id: int) -> Answer:
        answer = self._answers.pop(sequence_id)
        self._note_idle()
        return answer

    def _note_idle(self) -> None:
        if not self._answers and self._step is None:
            self._idle.set()

    def _on_step_done(self, device_id: str, done: StepDone) -> None:
        step = self._step
        if step is None or done.step != step.run.step:
            return
        self.pool.note_progress(device_id)
        step.reported.add(self.stages.index_of(device_id))
        step.parts.append(done)
        share = done.streamed_bytes / len(step.run.sequences)
        for part in step.run.sequences:
            if answer := self._answers.get(part.sequence_id):
                answer.note_streamed(share)
        if device_id == self.stages.device_ids[-1]:
            step.tokens = done.tokens
        self._finish_step(step)

    def _on_worker_error(self, device_id: str, message: WorkerError) -> None:
        error = error_class(message.code)(f"{device_id}: {message.message}", hint=message.hint)
        if self.stages.fail(device_id, error):
            return
        step = self._step
        if message.step is None or step is None:
            logger.warning("%s: %s", self.name, error.message)
            if message.step is None and self.state == "ready":
                self._begin_recovery(error)
            return
        if message.step != step.run.step:
            return
        if step.error is None or isinstance(step.error, TransportError):
            step.error = error  # A stage that failed knows why; its neighbours only that it did.
        step.reported.add(self.stages.index_of(device_id))
        self._finish_step(step)

    def _finish_step(self, step: _StepInFlight) -> None:
        """End the step once every stage has reported: then each is ready for the next, and the account is complete."""
        if len(step.reported) < len(self.stages.device_ids):
            return
        self._over(step)
        if step.error is None:
            self.speed.learn(step.parts, sum(len(part.token_ids) for part in step.run.sequences))
            self._feed(StepCompleted(step=step.run.step, tokens=step.tokens))
            return
        logger.error("%s: step %d failed: %s", self.name, step.run.step, step.error.message)
        if isinstance(step.error, _BREAKING):
            self._begin_recovery(step.error)
            return
        self._feed(StepFailed(step=step.run.step, error=step.error))

    def _over(self, step: _StepInFlight) -> None:
        step.deadline.cancel()
        self._step = None
        self._note_idle()

    def _on_step_timeout(self) -> None:
        step = self._step
        if step is None:
            return
        silent = [device for index, device in enumerate(self.stages.device_ids) if index not in step.reported]
        for device_id in silent:
            self.pool.kill(device_id, f"did not finish a step within {self.limits.step_timeout:g} s")
        self._begin_recovery(DeadlineExceeded(f"a step took longer than {self.limits.step_timeout:g} s"))

    def _begin_recovery(self, error: TeengineError) -> None:
        """Fail what runs; open the stages again, unless the model is being unloaded."""
        self.problem = error.message
        self._lose(error)
        if self.state != "ready":
            return  # On its way out: nothing runs any more, and nothing needs to come back.
        self.state = "loading"
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())
            self._recovery.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _lose(self, error: TeengineError) -> None:
        if self._step is not None:
            self._over(self._step)
        self._feed(PipelineLost(error=error))

    async def _recover(self) -> None:
        """Open the stages again until it works, an error is final, or the workers failed too often."""
        for _ in range(self.worker_settings.max_failures):
            await self.stages.close(self.worker_settings.stop_timeout)
            try:
                await self.stages.open(lambda _: None)
            except TeengineError as error:
                self.problem = error.message
                logger.error("%s cannot be opened again: %s", self.name, error.message)  # noqa: TRY400 - no trace of ours
                failures = max(self.pool.num_failures(device_id) for device_id in self.stages.device_ids)
                if not error.retryable or failures >= self.worker_settings.max_failures:
                    break
            except Exception as error:  # The edge: whoever waits must not wait for a task that died.
                self.problem = f"opening its stages failed: {error!r:.200}"
                logger.exception("%s cannot be opened again", self.name)
                break
            else:
                # While it came back, someone may have begun to unload it, which its waiting answers may still see.
                self.state, self.problem = "ready" if self.state == "loading" else self.state, ""
                logger.info("%s is ready again", self.name)
                self._feed(PipelineReady())
                return
        self.state = "failed"
        self._lose(WorkerLost(f"{self.name} has failed: {self.problem}", hint=f"`teengine load {self.name}` again"))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._feed(Tick())
