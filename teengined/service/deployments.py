"""All loaded models: loading and unloading, one name each, and who holds how much of which device."""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from teengined.core.errors import CapacityError, Conflict, Draining, UnknownModel
from teengined.core.model import ModelManifest
from teengined.core.nearest import nearest
from teengined.core.plan import Plan, Tier
from teengined.modelpack.verify import check_companions
from teengined.protocol.messages import Deployment, Loaded, LoadModel, LoadProgress
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.scheduler import Scheduler, SchedulerLimits
from teengined.service.admission import ModelLimits
from teengined.service.deployment import LoadedModel
from teengined.service.disk_health import DiskHealth
from teengined.service.draft_model import DraftModel, check_draft_model
from teengined.service.drafts import check_mode, with_drafts
from teengined.service.host import available_memory_bytes
from teengined.service.host_ledger import claim_of
from teengined.service.host_pool import HostPool
from teengined.service.metrics.call_meter import CallMeter
from teengined.service.planning import Planned, Planner
from teengined.service.prefix_fingerprint import devices_of, fingerprint_of
from teengined.service.prefix_keeper import PrefixKeeper
from teengined.service.prefix_store import KeptPrefixes, PrefixStore
from teengined.service.prompts import PromptReader
from teengined.service.rendering.exchange import RenderBounds
from teengined.service.segments import parser_for
from teengined.service.settings import Config
from teengined.service.speed import SpeedMeter
from teengined.service.spool import SpoolDirectory, spool_limits
from teengined.service.stages import StageOptions, StageSet
from teengined.service.text import TextCodec
from teengined.service.workers import WorkerPool

__all__ = ["DeploymentSet"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[LoadProgress], None]
# A rendered chat may be as long as the longest message that could have carried it.
_TEMPLATE_FACTOR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What is a new deployment's own before it is made."""

    id: str
    host_pool_ticket: str
    host_pool_bytes: int


@dataclass(slots=True, kw_only=True, eq=False)
class DeploymentSet:
    """The deployments of one daemon, by the name that requests use."""

    config: Config
    planner: Planner
    pool: WorkerPool
    runtime_dir: Path
    spool: SpoolDirectory
    kept: PrefixStore
    host_pool: HostPool
    host_pool_path: str = ""
    """Where workers ask the pool for memory."""
    disks: DiskHealth = field(default_factory=lambda: DiskHealth(paths=()))
    draining: bool = False
    _models: dict[str, LoadedModel] = field(default_factory=dict[str, LoadedModel])
    _planning: asyncio.Lock = field(default_factory=asyncio.Lock)
    _num_loads: int = 0
    _loads: "set[asyncio.Task[Any]]" = field(default_factory=set["asyncio.Task[Any]"])

    def describe(self, *, placements: bool) -> tuple[Deployment, ...]:
        """Return all deployments by name."""
        return tuple(model.describe(placements=placements) for model in self.models)

    def get(self, name: str) -> LoadedModel:
        """Return a loaded model.

        Raises:
            UnknownModel: none is loaded under that name.
        """
        if model := self._models.get(name):
            return model
        loaded = ", ".join(sorted(self._models)) or "none"
        near = nearest(name, self._models)
        raise UnknownModel(
            f"{name!r:.120} is not loaded; loaded models: {loaded}",
            hint=f"did you mean {near[0]}?" if near else f"`teengine load {name:.120}` loads it",
        )

    def calls_of(self, name: str) -> CallMeter | None:
        """Return where calls to a model are counted; None where none is loaded under that name."""
        model = self._models.get(name)
        return None if model is None else model.calls

    def uses_package(self, package: str) -> bool:
        """Say whether a deployment runs a package of the store."""
        return any(model.package == package for model in self._models.values())

    def reserved_bytes(self) -> dict[str, int]:
        """Return what the deployments hold of each device's budget, by device id."""
        reserved: Counter[str] = Counter()
        for model in self._models.values():
            for stage in model.stages.plan.stages:
                reserved[stage.device_id] += stage.total_bytes
        return dict(reserved)

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        """All of them, by name."""
        return tuple(self._models[name] for name in sorted(self._models))

    @property
    def num_running(self) -> int:
        """Sequences that hold KV, everywhere."""
        return sum(model.scheduler.num_running for model in self._models.values())

    @property
    def num_queued(self) -> int:
        """Sequences that wait for it, everywhere."""
        return sum(model.scheduler.num_waiting for model in self._models.values())

    async def load(self, request: LoadModel, on_progress: OnProgress) -> Loaded:
        """Plan a model beside those that are loaded, open its stages, and return when it answers.

        Raises:
            Conflict: the name is taken.
            TeengineError: as planning and opening; nothing stays behind.
        """
        load = asyncio.current_task()
        assert load is not None
        self._loads.add(load)
        load.add_done_callback(self._loads.discard)
        return await self._load(request, on_progress)

    async def _load(self, request: LoadModel, on_progress: OnProgress) -> Loaded:
        start = time.monotonic()
        name = request.name or request.plan.model
        async with self._planning:
            self._check_room(name)
            self._check_draft(request, name)
            await asyncio.to_thread(self.planner.store.manifest, request.plan.model)  # A wrong name shows no progress.
            on_progress(LoadProgress(phase="plan", done=0, total=1, unit="steps"))
            planned = await self.planner.plan(request.plan, self.reserved_bytes(), on_progress)
            place = self._place_of(planned)
            try:
                self._models[name] = model = await self._make(request, name, planned, place)
            except BaseException:
                self.host_pool.release(place.id)
                raise
        on_progress(LoadProgress(phase="plan", done=1, total=1, unit="steps"))
        try:
            await model.open(on_progress)
        except BaseException:
            self._forget(name)
            raise
        seconds = time.monotonic() - start
        logger.info("loaded %s on %s in %.1f s", name, ", ".join(model.stages.device_ids), seconds)
        return Loaded(deployment=model.describe(placements=True), seconds=seconds)

    async def unload(self, name: str, *, now: bool) -> None:
        """Give a model's memory back, after its answers or at once.

        Raises:
            UnknownModel: none is loaded under that name.
            Conflict: it is still being loaded, or unloaded already.
        """
        model = self.get(name)
        if model.state == "unloading" or not model.opened:
            raise Conflict(f"{name} is {model.state}", hint="`teengine ps` shows when it is done")
        model.refuse_new()
        if not now:
            await model.wait_idle()
            await model.save()
        await model.close()
        self._forget(name)
        logger.info("unloaded %s", name)

    def _forget(self, name: str) -> None:
        """Let go of a model whose stages are closed, and of the host memory that nobody else uses."""
        model = self._models.pop(name, None)
        if model is not None:
            self.host_pool.release(model.id)

    async def drain(self, timeout_seconds: float) -> None:
        """Refuse what is new and wait until running answers are done, at most `timeout_seconds`."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_seconds):
                for model in tuple(self._models.values()):
                    await model.wait_idle()
                    await model.save()
        except TimeoutError:
            logger.warning("%d answers are cut off after %g s of drain", self.num_running, timeout_seconds)

    async def abandon(self) -> None:
        """Give up loads under way and fail every answer, because the workers are about to end."""
        self.draining = True
        loads = tuple(self._loads)
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        error = Draining("the daemon stopped before the answer was complete", hint="send the request again")
        await asyncio.gather(*(model.abandon(error) for model in self._models.values()))

    async def give_back_kept(self) -> None:
        """Let others have the KV that outlives the daemon, and hold it to its bounds: the workers have ended."""
        keepers = (model.keeper for model in self._models.values() if model.keeper is not None)
        await asyncio.gather(*(keeper.close() for keeper in keepers))

    def check_open(self) -> None:
        """Raise `Draining` once the daemon takes nothing new."""
        if self.draining:
            raise Draining("the daemon is shutting down and takes nothing new", hint="try again when it is back")

    def _check_room(self, name: str) -> None:
        self.check_open()
        if name in self._models:
            state = self._models[name].state
            first = "wait until `teengine ps` no longer lists it" if state == "unloading" else "unload it first"
            raise Conflict(f"{name} is {state} already", hint=f"{first}, or load it under another name")
        limit = self.config.limits.max_deployments
        if len(self._models) >= limit:
            raise CapacityError(
                f"{limit} models are loaded, which is the limit", hint="unload one with `teengine unload`"
            )

    def _place_of(self, planned: Planned) -> _Place:
        """Return a new deployment's own place, with what it keeps in host memory reserved.

        Raises:
            CapacityError: the pool of host memory has no room.
        """
        self._num_loads += 1
        deployment_id = f"d{self._num_loads}"
        claim = claim_of(planned.plan, planned.manifest)
        ticket = self.host_pool.reserve(deployment_id, claim)
        return _Place(id=deployment_id, host_pool_ticket=ticket, host_pool_bytes=claim.total_bytes)

    def _check_draft(self, request: LoadModel, name: str) -> None:
        """Refuse guesses that cannot be made, before a plan is made and weights are read.

        Raises:
            UnknownModel: no such draft model is loaded.
            RequestError: guesses by a model are wanted and none is named, or one is named and not wanted.
        """
        check_mode(request.speculation or self.config.speculation.mode, request.draft)
        if not request.draft:
            return
        try:
            draft = self.get(request.draft)
        except UnknownModel as error:
            first = f"load the draft model first: `teengine load {request.draft:.120}`"
            raise UnknownModel(f"no model to draft for {name:.120}: {error.message}", hint=first) from error
        if draft.state != "ready":
            raise Conflict(
                f"{request.draft} is {draft.state} and cannot draft for {name:.120}", hint="see `teengine ps`"
            )

    async def _make(self, request: LoadModel, name: str, planned: Planned, place: _Place) -> LoadedModel:
        config, plan = self.config, replace(planned.plan, model=name)
        package_dir = await asyncio.to_thread(self.planner.store.path_of, request.plan.model)
        if request.verify:
            await asyncio.to_thread(check_companions, package_dir, planned.manifest)
        text = await asyncio.to_thread(TextCodec, package_dir, _render_bounds(config))
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(asyncio.to_thread, text.close)
            draft = await self._draft_model(request, name, text, planned.manifest.vocab_size)
            spool, kept = await self._spool(request, package_dir, planned)
            if kept is not None:
                undo.callback(kept.close)
            options = replace(
                self._stage_options(request, planned, spool),
                package_dir=package_dir,
                spool_dir=self._spool_dir(place, spool, kept),
                address_dir=self.runtime_dir / "stages" / place.id,
                host_pool_ticket=place.host_pool_ticket,
            )
            policy = self.planner.registry.scheduling_policy(config.batching.scheduling_policy)
            scheduler_limits = with_drafts(_scheduler_limits(config, planned, spool), config.speculation, request)
            model = LoadedModel(
                id=place.id,
                name=name,
                package=request.plan.model,
                package_dir=package_dir,
                manifest=planned.manifest,
                stages=StageSet(place.id, plan, options, self.pool),
                text=text,
                prompts=PromptReader(text, plan.context_tokens, lambda: datetime.now().astimezone()),
                parser=parser_for(text.template_source, text.special_tokens, planned.manifest.architecture),
                request_limits=_request_limits(config, name, planned),
                scheduler=Scheduler(policy, scheduler_limits, ready=False),
                speed=SpeedMeter(plan, planned.profiles.host.disk_read_bytes_per_second),
                pool=self.pool,
                limits=config.limits,
                worker_settings=config.worker,
                disks=self.disks,
                host_pool_bytes=place.host_pool_bytes,
                draft=draft,
                speculation=request.speculation or config.speculation.mode,
            )
            if kept is not None:
                model.keeper = PrefixKeeper(
                    kept=kept,
                    store=self.kept,
                    scheduler=model.scheduler,
                    num_stages=len(plan.stages),
                    interval_seconds=config.kv.kept_interval,
                )
            undo.pop_all()
            return model

    async def _spool(
        self, request: LoadModel, package_dir: Path, planned: Planned
    ) -> tuple[SpoolLimits, KeptPrefixes | None]:
        """Return the room for KV below the devices, and where it outlives the deployment, if it can."""
        limits = spool_limits(self.config.kv, planned, available_memory_bytes())
        if not limits.outlives:
            return limits, None
        settings: dict[str, int | str] = {
            "block_tokens": planned.planning.block_tokens,
            "kv_dtype": planned.planning.kv_dtype,
            "numerics": request.plan.numerics or self.config.planning.numerics,
            "num_disk_slots": limits.num_disk_slots,
        }
        profiles = self.planner.profiles
        devices = devices_of(planned.plan, profiles.specs, profiles.descriptions)
        fingerprint = await asyncio.to_thread(fingerprint_of, package_dir, planned.plan, devices, settings)
        opening = asyncio.create_task(asyncio.to_thread(self.kept.open, request.plan.model, fingerprint))
        try:
            kept = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_give_back)  # What nobody will have must not stay locked.
            raise
        return replace(limits, outlives=kept is not None), kept

    def _spool_dir(self, place: _Place, spool: SpoolLimits, kept: KeptPrefixes | None) -> Path | None:
        if kept is not None:
            return kept.path
        return self.spool.make(place.id) if spool.num_disk_slots else None

    def _stage_options(self, request: LoadModel, planned: Planned, spool: SpoolLimits) -> StageOptions:
        """Return what stages are told, but for the places that are the deployment's own."""
        config = self.config
        return StageOptions(
            package_dir=Path(),
            address_dir=Path(),
            num_host_slots=spool.num_host_slots,
            num_disk_slots=spool.num_disk_slots,
            verify=request.verify,
            direct_io=self._wants_direct_io(planned.manifest, planned.plan),
            streaming=replace(config.streaming, max_step_tokens=planned.planning.max_step_tokens),
            limits=config.limits,
            num_blocks=planned.planning.num_blocks,
            block_tokens=planned.planning.block_tokens,
            kv_dtype=planned.planning.kv_dtype,
            numerics=request.plan.numerics or config.planning.numerics,
            host_pool_path=self.host_pool_path,
            lock_host_pool=config.host.lock,
        )

    async def _draft_model(
        self, request: LoadModel, target: str, text: TextCodec, vocab_size: int
    ) -> DraftModel | None:
        """Return who is to guess for a model.

        Raises:
            UnknownModel: no such model is loaded.
            RequestError: its vocabulary is another one.
        """
        if not request.draft:
            return None
        await asyncio.to_thread(check_draft_model, self.get(request.draft), target, text.vocabulary())
        return DraftModel(
            name=request.draft, vocab_size=vocab_size, find=self.get, max_seconds=self.config.speculation.draft_wait
        )

    def _wants_direct_io(self, manifest: ModelManifest, plan: Plan) -> bool:
        """Say whether streamed reads should go past the page cache: when it could not hold what is streamed."""
        choice = self.config.streaming.direct_io
        if choice != "auto":
            return choice == "always"
        sizes = {unit.id: unit.size_bytes for unit in manifest.units}
        placements = [placement for stage in plan.stages for placement in stage.units]
        streamed = sum(sizes[placement.unit_id] for placement in placements if placement.tier is not Tier.DEVICE)
        return streamed > available_memory_bytes()


def _give_back(opening: "asyncio.Task[KeptPrefixes | None]") -> None:
    if not opening.cancelled() and opening.exception() is None and (kept := opening.result()) is not None:
        kept.close()


def _scheduler_limits(config: Config, planned: Planned, spool: SpoolLimits) -> SchedulerLimits:
    plan, planning = planned.plan, planned.planning
    # A stage that streams reads its weights once for each step: steps side by side would read them once for each.
    streams = any(stage.streamed_bytes for stage in plan.stages)
    return SchedulerLimits(
        max_running=config.batching.max_running,
        max_waiting=config.limits.max_waiting,
        max_waiting_tokens=config.limits.max_waiting_tokens,
        max_owner_waiting=config.limits.max_owner_waiting,
        max_owner_waiting_tokens=config.limits.max_owner_waiting_tokens,
        max_step_tokens=planning.max_step_tokens,
        max_logit_rows=config.batching.max_logit_rows,
        num_blocks=planning.num_blocks,
        block_tokens=planning.block_tokens,
        num_microbatches=1 if streams else len(plan.stages),
        prefix_cache=config.batching.prefix_cache,
        prompt_stretch=config.batching.prompt_stretch,
        max_promised_blocks=math.ceil(config.limits.max_promised_kv * planning.num_blocks),
        spool=spool,
    )


def _request_limits(config: Config, name: str, planned: Planned) -> ModelLimits:
    return ModelLimits(
        model=name,
        vocab_size=planned.manifest.vocab_size,
        context_tokens=planned.plan.context_tokens,
        max_choices=config.batching.max_choices,
        max_inputs=config.batching.max_inputs,
        max_seconds=config.limits.max_request_time,
        max_reply_bytes=config.protocol.max_reply_bytes,
    )


def _render_bounds(config: Config) -> RenderBounds:
    return RenderBounds(
        max_characters=_TEMPLATE_FACTOR * config.protocol.max_message,
        cpu_seconds=config.checks.template_seconds,
        wall_seconds=config.checks.template_wall,
        memory_bytes=config.checks.template_memory,
    )
