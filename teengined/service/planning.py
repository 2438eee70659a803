"""From a client's wish to a plan: defaults filled in, devices looked up, measurements at hand, the planner asked."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeadlineExceeded, RequestError
from teengined.core.model import ModelManifest
from teengined.core.nearest import nearest
from teengined.core.plan import Plan
from teengined.core.quantities import format_bytes
from teengined.interfaces.policy import Assignment, PlacementPolicy
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.store import PackageStore
from teengined.placement.inputs import PlanningInput
from teengined.protocol.messages import LoadProgress, PlanModel, Profiles
from teengined.service.budgets import free_host_bytes, short_bytes
from teengined.service.detached_threads import DetachedThreads
from teengined.service.host import available_memory_bytes
from teengined.service.host_pool import HostPool
from teengined.service.profiles import ProfileStore
from teengined.service.settings import Config

__all__ = ["Planned", "Planner"]

logger = logging.getLogger(__name__)

# Plans take milliseconds; more than this at once are policies that do not return.
_NUM_THREADS = 4
# Beyond, what they would take could not be counted in 64 bits.
_MAX_SLOTS = 1 << 20

OnProgress = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan and what it was made from."""

    plan: Plan
    manifest: ModelManifest
    profiles: Profiles
    devices: tuple[DeviceSpec, ...]
    planning: PlanningInput
    policy: PlacementPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Plans models of the store on this host's devices."""

    config: Config
    registry: PluginRegistry
    store: PackageStore
    profiles: ProfileStore
    specs: tuple[DeviceSpec, ...]
    host_pool: HostPool
    available_bytes: Callable[[], int] = available_memory_bytes
    threads: DetachedThreads = field(default_factory=lambda: DetachedThreads(_NUM_THREADS))

    async def plan(self, request: PlanModel, reserved: Mapping[str, int], on_progress: OnProgress) -> Planned:
        """Return a plan beside the bytes that other deployments have `reserved` by device id.

        Raises:
            UnknownModel, PackageError: the model is not there, or damaged.
            RequestError: the request names what does not exist or cannot be.
            ContextTooLong, DoesNotFit: as the planner.
            DeadlineExceeded: measuring or planning took too long.
        """
        manifest = await asyncio.to_thread(self.store.manifest, request.model)
        devices = self._devices(request)
        profiles = await self.profiles.get(on_progress)
        planning = self._input(request, manifest, devices, profiles, self._taken(reserved))
        planning = self._with_host_tier(planning, reserved)
        policy = self.registry.placement_policy(request.policy or self.config.planning.policy)
        from teengined.placement.chunks import plan_with_chunks  # numpy loads with the first plan, not with the daemon

        step_tokens = self.config.streaming.expert_step_tokens
        try:
            async with asyncio.timeout(self.config.planning.plan_timeout):
                made, planning = await self.threads.run(partial(plan_with_chunks, planning, policy, step_tokens))
        except TimeoutError as error:
            seconds = self.config.planning.plan_timeout
            raise DeadlineExceeded(f"policy {policy.name!r} gave no plan within {seconds:g} s") from error
        return Planned(
            plan=made, manifest=manifest, profiles=profiles, devices=devices, planning=planning, policy=policy
        )

    async def advise(self, planned: Planned) -> tuple[str, ...]:
        """Return what would make a plan faster; nothing where finding it takes too long."""
        from teengined.placement.advice import suggestions

        try:
            async with asyncio.timeout(self.config.planning.plan_timeout):
                return await self.threads.run(partial(suggestions, planned.planning, planned.policy, planned.plan))
        except TimeoutError:
            return ()

    def _taken(self, reserved: Mapping[str, int]) -> Mapping[str, int]:
        """Return what cannot be had of each device: other deployments' parts, and what the host does not have now."""
        short = short_bytes(self.specs, reserved, max(0, self.available_bytes() - self.host_pool.unfilled_bytes))
        for device_id, num_bytes in short.items():
            logger.warning("%s: the host lacks %s of its budget now", device_id, format_bytes(num_bytes))
        return {key: reserved.get(key, 0) + short.get(key, 0) for key in {*reserved, *short}}

    def _with_host_tier(self, planning: PlanningInput, reserved: Mapping[str, int]) -> PlanningInput:
        """Let a plan use what the pool of host memory has left, and share what it holds."""
        pool = self.host_pool
        tier_bytes = pool.ledger.budget_bytes
        if not self.config.host.memory:
            tier_bytes = min(tier_bytes, planning.host.memory_bytes)
        free_bytes = free_host_bytes(self.specs, reserved, self.available_bytes()) - pool.unfilled_bytes
        room = max(0, min(tier_bytes - pool.ledger.taken_bytes, free_bytes))
        held = pool.ledger.digests
        return replace(
            planning,
            host=replace(planning.host, memory_bytes=tier_bytes),
            reserved_host_bytes=tier_bytes - room,
            held_unit_ids=frozenset(unit.id for unit in planning.manifest.units if unit.digest in held),
        )

    def _input(
        self,
        request: PlanModel,
        manifest: ModelManifest,
        devices: tuple[DeviceSpec, ...],
        profiles: Profiles,
        reserved: Mapping[str, int],
    ) -> PlanningInput:
        planning, streaming = self.config.planning, self.config.streaming
        if request.num_slots > _MAX_SLOTS:
            raise RequestError(
                f"num_slots must be at most {_MAX_SLOTS}, not {request.num_slots}", hint="ask for fewer with --slots"
            )
        try:
            return PlanningInput(
                manifest=manifest,
                devices=devices,
                profiles={profile.device_id: profile for profile in profiles.devices},
                host=profiles.host,
                links=profiles.links,
                context_tokens=request.context_tokens or min(planning.context, manifest.max_context_tokens),
                num_slots=request.num_slots or planning.num_slots,
                objective=request.objective,
                resident_fraction=request.resident_fraction,
                assignment=_assignment(request.assignment, devices),
                ring_slots=streaming.ring_slots,
                max_step_tokens=streaming.max_step_tokens,
                max_logit_rows=self.config.batching.max_logit_rows,
                block_tokens=self.config.kv.block_tokens,
                kv_dtype=request.kv_dtype or self.config.kv.dtype,
                reserved_bytes=reserved,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    def _devices(self, request: PlanModel) -> tuple[DeviceSpec, ...]:
        """Return the devices asked for, in that order; a forced assignment names its own."""
        wanted = tuple(request.assignment) if request.assignment else request.device_ids
        by_id = {spec.id: spec for spec in self.specs}
        for device_id in wanted:
            if device_id not in by_id:
                near = nearest(device_id, by_id)
                hint = (f"did you mean {near[0]!r}? " if near else "") + f"there are: {', '.join(by_id)}"
                raise RequestError(f"no device {device_id!r:.80} is configured", hint=hint)
        return tuple(by_id[device_id] for device_id in dict.fromkeys(wanted)) if wanted else self.specs


def _assignment(layers: Mapping[str, int] | None, devices: tuple[DeviceSpec, ...]) -> tuple[Assignment, ...] | None:
    if not layers:
        return None
    stages: list[Assignment] = []
    start = 0
    for index, spec in enumerate(devices):
        stages.append(Assignment(device=index, layer_start=start, layer_end=start + layers[spec.id]))
        start += layers[spec.id]
    return tuple(stages)
