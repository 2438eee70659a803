"""One loaded model: the shell around its scheduler. Events go in, steps go to the stages, chunks to the clients."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from teengined.core.errors import (
    DeadlineExceeded,
    DiskFailed,
    DriverError,
    PackageError,
    PluginError,
    TeengineError,
    TransportError,
    WorkerLost,
    error_class,
)
from teengined.core.model import ModelManifest
from teengined.core.plan import Plan, Tier
from teengined.protocol.messages import Deployment, RequestItem
from teengined.protocol.worker_messages import SpoolReport, StepDone, WorkerError
from teengined.scheduler.events import BlocksFound, PipelineLost, PipelineReady, Tick
from teengined.scheduler.scheduler import Scheduler
from teengined.service.admission import ModelLimits
from teengined.service.answer import Answer
from teengined.service.answers import AnswerTable
from teengined.service.disk_health import DiskHealth
from teengined.service.draft_model import DraftModel
from teengined.service.drafts import drafted_tokens
from teengined.service.event_feed import EventFeed
from teengined.service.metrics.call_meter import CallMeter
from teengined.service.metrics.model_meter import ModelMeter
from teengined.service.pipeline import FinishedStep, Pipeline
from teengined.service.prefix_keeper import PrefixKeeper
from teengined.service.prompts import PromptReader
from teengined.service.recovery import Recovery
from teengined.service.settings import LimitSettings, WorkerSettings
from teengined.service.speed import SpeedMeter
from teengined.service.stages import OnProgress, StageSet
from teengined.service.submission import Submission
from teengined.service.text import TextCodec
from teengined.service.workers import WorkerPool

__all__ = ["LoadedModel"]

logger = logging.getLogger(__name__)

# Errors after which a stage cannot take another step: its weights, its device or its neighbour are not as they were.
_BREAKING = (PackageError, DriverError, TransportError, DeadlineExceeded)


@dataclass(slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A deployment from its plan to its unloading. Lives on one event loop; nothing here blocks."""

    id: str
    name: str
    package: str
    """Name in the store."""
    package_dir: Path
    manifest: ModelManifest
    stages: StageSet
    text: TextCodec
    prompts: PromptReader
    parser: str | None
    """Name of the format in which the model tells reasoning and tool calls; None where none is known."""
    request_limits: ModelLimits
    scheduler: Scheduler
    speed: SpeedMeter
    pool: WorkerPool
    limits: LimitSettings
    worker_settings: WorkerSettings
    disks: DiskHealth = field(default_factory=lambda: DiskHealth(paths=()))
    host_pool_bytes: int = 0
    """What it keeps in the pool of host memory."""
    draft: DraftModel | None = None
    """Who guesses for it; it may be gone by now."""
    keeper: PrefixKeeper | None = None
    """Where its KV outlives it."""
    speculation: str = "off"
    """Where guesses may come from, as `LoadModel` names it."""
    state: str = "loading"
    problem: str = ""
    meter: ModelMeter = field(init=False)
    calls: CallMeter = field(default_factory=CallMeter)
    _brief: Plan = field(init=False)
    """The plan without placements."""
    _num_units: Mapping[Tier, int] = field(init=False)
    _pipeline: Pipeline = field(init=False)
    _answers: AnswerTable = field(init=False)
    _feed: EventFeed = field(init=False)
    _recovery: Recovery = field(init=False)
    _kernels: tuple[str, ...] = ()
    """What the stages compute with, as they said when all were opened last."""
    _num_sequences: int = 0
    _ticker: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        """Wire the parts that belong to this deployment alone."""
        plan = self.stages.plan
        self._brief = replace(plan, stages=tuple(replace(stage, units=()) for stage in plan.stages))
        self._num_units = Counter(unit.tier for stage in plan.stages for unit in stage.units)
        self.meter = ModelMeter(len(self.stages.device_ids))
        self._answers = AnswerTable(speed=self.speed)
        self._pipeline = Pipeline(
            stages=self.stages,
            pool=self.pool,
            step_timeout=self.limits.step_timeout,
            on_finished=self._on_step_finished,
            on_broken=self._begin_recovery,
        )
        self._feed = EventFeed(
            name=self.name,
            scheduler=self.scheduler,
            answers=self._answers,
            pipeline=self._pipeline,
            meter=self.meter,
            draft=self.draft,
            on_failed=self._give_up,
        )
        if self.draft is not None:
            self.draft.on_event = self._feed.advance
        self._recovery = Recovery(
            name=self.name,
            stages=self.stages,
            pool=self.pool,
            settings=self.worker_settings,
            on_ready=self._on_recovered,
            on_problem=self._on_problem,
            on_failed=self._on_not_recovered,
        )

    async def open(self, on_progress: OnProgress) -> None:
        """Open the stages for the first time.

        Raises:
            TeengineError: as `StageSet.open`; what was opened is closed again.
        """
        self.pool.subscribe(self.id, self)
        try:
            if self.keeper is not None:
                await self.keeper.read()
            await self.stages.open(on_progress)
        except BaseException:
            await asyncio.shield(self.close())
            raise
        self.state = "ready"
        draft = () if self.draft is None else (self.draft.offer(),)
        self._kernels = self.stages.kernels
        found = () if self.keeper is None else self.keeper.begin(self._kernels)
        self._feed.advance(BlocksFound(blocks=found), PipelineReady(), *draft)
        self._ticker = asyncio.create_task(self._feed.tick())

    async def close(self) -> None:
        """Fail what still runs and close the stages. Safe to call twice."""
        await self.abandon(WorkerLost(f"{self.name} was unloaded", hint=f"`teengine load {self.name}` loads it again"))
        await self.stages.close(self.worker_settings.stop_timeout)
        self.pool.unsubscribe(self.id)
        if self.keeper is None:
            await asyncio.to_thread(self.stages.remove_spool)
        else:
            await self.keeper.close()
        await asyncio.to_thread(self.text.close)

    async def abandon(self, error: TeengineError) -> None:
        """Fail what still runs; the stages are left to the end of their workers."""
        self.state = "unloading"
        await self._recovery.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._feed.end_everything(error)
        if self.keeper is not None:
            await self.keeper.stop()

    @property
    def opened(self) -> bool:
        """Whether the first opening is over."""
        return self._ticker is not None

    def refuse_new(self) -> None:
        """Take no more requests; those under way go on."""
        self.state = "unloading"

    async def wait_idle(self) -> None:
        """Return when no answer is under way or being read, nor a step whose answers were cancelled."""
        await self._feed.wait_idle()

    async def save(self) -> None:
        """Bring the KV that outlives the deployment to disk. For when nothing runs and nothing new is taken."""
        if self.keeper is not None and self.scheduler.ready and not self.scheduler.num_running:
            self._feed.advance(Tick())
            await self.keeper.wait_calm()

    def check_room(self, owner: str, num_choices: int) -> None:
        """Refuse a request for which there is no room now, before any work is done for it. Raises as `submit`."""
        self._check_taking()
        self.scheduler.check_room(owner, num_choices)

    def _check_taking(self) -> None:
        if self.state not in ("ready", "loading"):
            why = f": {self.problem}" if self.problem else ""
            raise WorkerLost(f"{self.name} is {self.state}{why}", hint=f"`teengine load {self.name}` again")

    def submit(self, submission: Submission) -> Answer:
        """Queue a request and return its answer, whose `ended` is the end. Its caller must `release` it.

        Raises:
            QueueFull, QuotaExceeded: too many wait already; says when to come back.
            WorkerLost: the deployment has failed for good.
        """
        self._check_taking()
        now = time.monotonic()
        first, self._num_sequences = self._num_sequences, self._num_sequences + submission.sampling.num_choices
        sequence_ids = range(first, self._num_sequences)
        ended = asyncio.get_running_loop().create_future()
        answer = submission.answer(self.name, sequence_ids, self.text, ended, now)
        self._answers.add(answer)
        self._feed.note_busy()
        try:
            self._feed.advance(submission.event(sequence_ids, self.manifest.eos_token_ids))
        except TeengineError:
            self._answers.take_back(answer)
            self._feed.note_idle()
            raise
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer, which ends with reason `cancelled`; at the latest with the steps in flight."""
        self._feed.advance(*self._answers.cancel(answer))

    def grant(self, answer: Answer, num_chunks: int) -> None:
        """Let more chunks of an answer go."""
        if events := self._answers.grant(answer, num_chunks):
            self._feed.advance(*events)

    def release(self, answer: Answer) -> None:
        """Let go of an answer; one that is not over is cancelled."""
        if not answer.ended.done():
            self.cancel(answer)
        self._answers.release(answer)
        self._feed.note_idle()

    def requests(self) -> tuple[RequestItem, ...]:
        """Return what is under way, oldest first."""
        return self._answers.describe(time.monotonic())

    def describe(self, *, placements: bool) -> Deployment:
        """Return the deployment as `teengine ps` shows it; with `placements`, also where each of its units rests."""
        scheduler, meter = self.scheduler, self._pipeline.meter
        return Deployment(
            id=self.id,
            model=self.name,
            state=self.state,
            plan=self.stages.plan if placements else self._brief,
            size_bytes=self.manifest.size_bytes,
            precision=self.manifest.precision,
            num_running=scheduler.num_running,
            num_queued=scheduler.num_waiting,
            num_completed=self.speed.num_completed,
            tokens_per_second=self.speed.tokens_per_second,
            bound_tokens_per_second=self.speed.bound_tokens_per_second,
            problem=self.problem,
            num_blocks=scheduler.limits.num_blocks,
            num_used_blocks=scheduler.num_used_blocks,
            num_cached_blocks=scheduler.num_cached_blocks,
            num_queued_tokens=scheduler.num_waiting_tokens,
            num_preempted=scheduler.num_preempted,
            total_tokens_per_second=meter.tokens_per_second(time.monotonic()),
            stage_bubbles=meter.bubbles,
            experts=self.speed.experts.describe(),
            stage_bubble_seconds=tuple(meter.bubble_seconds),
            drafted=drafted_tokens(scheduler.drafted),
            host_pool_bytes=self.host_pool_bytes,
            kv_tiers=replace(scheduler.tiers, problem=self._spool_problem()),
            draft="" if self.draft is None else self.draft.name,
            speculation=self.speculation,
            numerics=self.stages.numerics,
            kv_dtype=self.stages.kv_dtype,
            num_host_units=self._num_units[Tier.HOST],
            num_disk_units=self._num_units[Tier.DISK],
        )

    def _spool_problem(self) -> str:
        return self._pipeline.spool_reports.problem or ("" if self.keeper is None else self.keeper.problem)

    def on_message(self, device_id: str, message: Any) -> None:
        """Take what a worker says about this deployment."""
        if isinstance(message, StepDone):
            self._pipeline.on_step_done(device_id, message)
        elif isinstance(message, SpoolReport):
            if (reported := self._pipeline.spool_reports.take(message)) is not None:
                self._feed.advance(reported)
                self._note_kept()
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

    def _give_up(self, error: PluginError) -> None:
        """Fail everything: with a broken policy no step can be chosen any more."""
        logger.error("%s: %s", self.name, error.message)
        self.state, self.problem = "failed", error.message
        self._feed.end_everything(error)

    def _note_kept(self) -> None:
        if self.keeper is not None:
            self.keeper.note()

    def _on_step_finished(self, step: FinishedStep) -> None:
        self._answers.note_streamed(step)
        self.meter.note_step(step.parts)
        if step.error is None:
            self.speed.learn(step.parts, sum(len(part.token_ids) for part in step.run.parts))
            self._feed.advance(step.event)
            self._note_kept()
            return
        logger.error("%s: step %d failed: %s", self.name, step.run.step, step.error.message)
        if isinstance(step.error, _BREAKING) and not step.blamed_ids:
            self._begin_recovery(step.error)
            return
        if isinstance(step.error, PackageError):
            self.problem = step.error.message  # It goes on without what cannot be read, and should be converted again.
        self._feed.advance(step.event)

    def _on_worker_error(self, device_id: str, message: WorkerError) -> None:
        error = error_class(message.code)(f"{device_id}: {message.message}", hint=message.hint)
        if isinstance(error, DiskFailed):
            self.disks.note_failure(self.package_dir, error.message)
        if self.stages.fail(device_id, error):
            return
        if message.step is not None:
            self._pipeline.on_step_error(device_id, message.step, error, message.blamed_ids)
            return
        logger.warning("%s: %s", self.name, error.message)
        if self.state == "ready":
            self._begin_recovery(error)

    def _begin_recovery(self, error: TeengineError) -> None:
        """Fail what runs; open the stages again, unless the model is being unloaded."""
        self.problem = error.message
        self._pipeline.abandon()
        if self.state != "ready":
            self._feed.end_everything(error)  # On its way out: nothing runs any more, and nothing needs to come back.
            self._note_kept()
            return
        self.state = "loading"
        self._feed.advance(PipelineLost(error=error))
        self._note_kept()
        self._recovery.begin()

    def _on_recovered(self) -> None:
        # While it came back, someone may have begun to unload it, which its waiting answers may still see.
        self.state, self.problem = "ready" if self.state == "loading" else self.state, ""
        logger.info("%s is ready again", self.name)
        before, self._kernels = self._kernels, self.stages.kernels
        if self.keeper is not None:
            self.keeper.kernels = self._kernels
        self._feed.advance(PipelineReady(computes_otherwise=self._kernels != before))

    def _on_problem(self, problem: str) -> None:
        self.problem = problem

    def _on_not_recovered(self) -> None:
        self.state = "failed"
        error = WorkerLost(f"{self.name} has failed: {self.problem}", hint=f"`teengine load {self.name}` again")
        self._feed.end_everything(error)
