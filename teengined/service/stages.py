"""The stages of one deployment on their workers: opened together, stepped together, closed together."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teengined.core.errors import DeadlineExceeded, TeengineError, WorkerLost
from teengined.core.plan import Plan, Stage
from teengined.protocol.messages import LoadProgress
from teengined.protocol.worker_messages import (
    CloseStage,
    OpenStage,
    RunStep,
    StageClosed,
    StageOpened,
    StageProgress,
)
from teengined.scheduler.events import Run
from teengined.service.settings import LimitSettings, StreamingSettings
from teengined.service.workers import WorkerPool

__all__ = ["StageOptions", "StageSet"]

# A worker waits longer for its neighbour than the daemon waits for the step, so that the daemon, who sees them all,
# is the one who decides which worker hangs.
_NEIGHBOUR_MARGIN_SECONDS = 10.0
OnProgress = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """What every stage of a deployment is told besides its place in the plan."""

    package_dir: Path
    address_dir: Path
    """Private directory for the addresses of the transports; made and removed here."""
    verify: bool
    direct_io: bool
    streaming: StreamingSettings
    limits: LimitSettings
    num_blocks: int
    block_tokens: int
    kv_dtype: str
    numerics: str
    num_host_slots: int = 0
    num_disk_slots: int = 0
    host_pool_path: str = ""
    host_pool_ticket: str = ""
    lock_host_pool: bool = False
    spool_dir: Path | None = None
    """Private directory for the stages' spool files, where there are disk slots. It outlives the stages; `remove_spool`
    removes it."""


class StageSet:
    """Opens, steps and closes the stages of one plan. The owner passes on what workers say."""

    def __init__(self, deployment_id: str, plan: Plan, options: StageOptions, pool: WorkerPool) -> None:
        """Remember the plan; `open` starts the work."""
        self.plan = plan
        self._id = deployment_id
        self._options = options
        self._pool = pool
        self._expected: type = StageOpened
        self._waiting: set[int] = set()
        """Indexes of stages that have not said `StageOpened`, or `StageClosed`, yet."""
        self._outcome: asyncio.Future[None] | None = None
        self._loaded_bytes: dict[int, int] = {}
        self._kernels: dict[int, str] = {}
        self._on_progress: OnProgress | None = None

    @property
    def device_ids(self) -> tuple[str, ...]:
        """Devices in order of the stages."""
        return tuple(stage.device_id for stage in self.plan.stages)

    @property
    def numerics(self) -> str:
        """Whether results are the same whatever runs beside them, as `PlanModel` names it."""
        return self._options.numerics

    @property
    def kv_dtype(self) -> str:
        """How keys and values are stored, as `PlanModel` names it."""
        return self._options.kv_dtype

    @property
    def kernels(self) -> tuple[str, ...]:
        """Which kernels each stage computes with since it was opened last."""
        return tuple(self._kernels.get(stage.index, "") for stage in self.plan.stages)

    def index_of(self, device_id: str) -> int:
        """Return the index of the stage on a device."""
        return self.device_ids.index(device_id)

    async def open(self, on_progress: OnProgress) -> None:
        """Start the workers that are missing and open every stage.

        Raises:
            WorkerLost: a worker died meanwhile or did not start.
            DeadlineExceeded: it took longer than `limits.load_timeout`.
            TeengineError: what a worker said went wrong.
        """
        self._on_progress = on_progress
        self._loaded_bytes = {}
        self._make_address_dir()
        await self._start_workers(on_progress)
        on_progress(LoadProgress(phase="load", done=0, total=self._total_bytes()))
        for stage in self.plan.stages:
            state, _, problem = self._pool.state_of(stage.device_id)
            if state != "ready":  # It died while a later one started.
                raise WorkerLost(problem or f"the worker of {stage.device_id} is {state}")
            self._pool.send(stage.device_id, self._order(stage))
        everyone = {stage.index for stage in self.plan.stages}
        await self._wait_for(StageOpened, everyone, self._options.limits.load_timeout)
        on_progress(LoadProgress(phase="load", done=self._total_bytes(), total=self._total_bytes()))

    async def close(self, timeout_seconds: float) -> None:
        """Close the stages on the workers that live; those that do not answer in time are killed."""
        alive = [stage for stage in self.plan.stages if self._pool.state_of(stage.device_id)[0] == "ready"]
        for stage in alive:
            self._pool.send(stage.device_id, CloseStage(deployment_id=self._id))
        try:
            await self._wait_for(StageClosed, {stage.index for stage in alive}, timeout_seconds)
        except DeadlineExceeded:
            for index in self._waiting:
                self._pool.kill(self.device_ids[index], f"did not close its stage within {timeout_seconds:g} s")
        finally:
            shutil.rmtree(self._options.address_dir, ignore_errors=True)

    def remove_spool(self) -> None:
        """Remove the spool files: no stage will be opened any more."""
        if self._options.spool_dir is not None:
            shutil.rmtree(self._options.spool_dir, ignore_errors=True)

    def run(self, run: Run) -> None:
        """Give one step to every stage."""
        order = RunStep(
            deployment_id=self._id,
            step=run.step,
            parts=run.parts,
            closed=run.closed,
            opened=run.opened,
            copies=run.copies,
            spooled=run.spooled,
            restored=run.restored,
            moves=run.moves,
        )
        self._pool.send_all(self.device_ids, order)

    def take(self, device_id: str, message: Any) -> None:
        """Follow what a worker says while stages open or close."""
        if isinstance(message, StageProgress):
            self._note_loaded(message)
        elif isinstance(message, self._expected):
            if isinstance(message, StageOpened):
                self._kernels[self.index_of(device_id)] = message.kernels
            self._note_done(device_id)

    def fail(self, device_id: str, error: TeengineError) -> bool:
        """End the opening under way with an error of one stage; False if there is none.

        While closing, a stage that fails or whose worker dies is closed too.
        """
        if self._outcome is None or self._outcome.done():
            return False
        if self._expected is StageOpened:
            self._outcome.set_exception(error)
        else:
            self._note_done(device_id)
        return True

    def _note_done(self, device_id: str) -> None:
        self._waiting.discard(self.index_of(device_id))
        if not self._waiting and self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(None)

    async def _start_workers(self, on_progress: OnProgress) -> None:
        """Start side by side what is missing: most of a start is waiting for the disk."""
        num_ready, num_stages = 0, len(self.plan.stages)

        def tell() -> None:
            on_progress(LoadProgress(phase="start workers", done=num_ready, total=num_stages, unit="workers"))

        async def start(device_id: str) -> None:
            nonlocal num_ready
            await self._pool.ensure(device_id)
            num_ready += 1
            tell()

        tell()
        await asyncio.gather(*(start(device_id) for device_id in self.device_ids))

    def _order(self, stage: Stage) -> OpenStage:
        options, stages = self._options, self.plan.stages
        first, last = stage.index == 0, stage.index == len(stages) - 1
        return OpenStage(
            deployment_id=self._id,
            package_dir=str(options.package_dir),
            stage=stage,
            num_stages=len(stages),
            context_tokens=self.plan.context_tokens,
            num_slots=self.plan.num_slots,
            listen_address="" if first else str(options.address_dir / f"stage{stage.index}"),
            listen_transport="" if first else stages[stage.index - 1].transport,
            connect_address="" if last else str(options.address_dir / f"stage{stage.index + 1}"),
            connect_transport="" if last else stage.transport,
            max_step_tokens=options.streaming.max_step_tokens,
            verify=options.verify,
            timeout_seconds=options.limits.step_timeout + _NEIGHBOUR_MARGIN_SECONDS,
            read_threads=options.streaming.read_threads,
            read_chunk_bytes=options.streaming.read_chunk,
            ring_slots=options.streaming.ring_slots,
            direct_io=options.direct_io,
            num_blocks=options.num_blocks,
            block_tokens=options.block_tokens,
            kv_dtype=options.kv_dtype,
            numerics=options.numerics,
            expert_policy=options.streaming.expert_policy,
            expert_guesses=options.streaming.expert_guesses,
            num_host_slots=options.num_host_slots,
            num_disk_slots=options.num_disk_slots,
            host_pool_path=options.host_pool_path,
            host_pool_ticket=options.host_pool_ticket,
            lock_host_pool=options.lock_host_pool,
            spool_path="" if options.spool_dir is None else str(options.spool_dir / f"stage{stage.index}"),
        )

    async def _wait_for(self, expected: type, indexes: set[int], timeout_seconds: float) -> None:
        self._expected, self._waiting = expected, indexes
        if not indexes:
            return
        self._outcome = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._outcome
        except TimeoutError as error:
            devices = ", ".join(self.device_ids[index] for index in sorted(self._waiting))
            raise DeadlineExceeded(f"no {expected.__name__} from {devices} within {timeout_seconds:g} s") from error
        finally:
            self._outcome = None

    def _note_loaded(self, progress: StageProgress) -> None:
        if self._on_progress is None or progress.stage_index >= len(self.plan.stages):
            return
        planned = self.plan.stages[progress.stage_index].resident_bytes
        share = progress.done_bytes / progress.total_bytes if progress.total_bytes > 0 else 1.0
        before = self._loaded_bytes.get(progress.stage_index, 0)
        self._loaded_bytes[progress.stage_index] = max(before, int(planned * min(1.0, share)))
        total = self._total_bytes()
        done = min(total, sum(self._loaded_bytes.values()))
        self._on_progress(LoadProgress(phase="load", done=done, total=total))

    def _total_bytes(self) -> int:
        return sum(stage.resident_bytes for stage in self.plan.stages)

    def _make_address_dir(self) -> None:
        shutil.rmtree(self._options.address_dir, ignore_errors=True)
        self._options.address_dir.mkdir(mode=0o700, parents=True)
