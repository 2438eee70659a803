"""Calls that plan, load, unload and measure."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from teengined.modelpack.naming import check_name
from teengined.protocol import messages as wire
from teengined.service.context import ServiceContext
from teengined.service.server import Call

__all__ = ["drain", "list_deployments", "load_model", "measure_devices", "plan_model", "unload_model"]

T = TypeVar("T")
# Work that goes on when its caller leaves; the loop itself holds only weak references.
_lasting: "set[asyncio.Task[Any]]" = set()


async def plan_model(context: ServiceContext, _call: Call, message: wire.PlanModel) -> wire.PlanReply:
    """Plan beside what is loaded, without loading."""
    planned = await context.planner.plan(message, context.deployments.reserved_bytes(), lambda _: None)
    return wire.PlanReply(
        plan=planned.plan,
        model_bytes=planned.manifest.size_bytes,
        precision=planned.manifest.precision,
        devices=planned.devices,
        host_profile=planned.profiles.host,
        suggestions=await context.planner.advise(planned),
    )


async def list_deployments(context: ServiceContext, _call: Call, message: wire.ListDeployments) -> wire.DeploymentList:
    """List what is loaded."""
    return wire.DeploymentList(deployments=context.deployments.describe(placements=message.placements))


async def load_model(context: ServiceContext, call: Call, message: wire.LoadModel) -> wire.Loaded:
    """Load; goes on when the caller leaves, so that a closed terminal does not undo an hour of reading."""
    context.deployments.check_open()
    if message.name:
        check_name(message.name)
    return await _lasting_beyond_caller(context.deployments.load(message, call.stream))


async def unload_model(context: ServiceContext, _call: Call, message: wire.UnloadModel) -> wire.Done:
    """Give the memory back."""
    await _lasting_beyond_caller(context.deployments.unload(message.model, now=message.now))
    return wire.Done()


async def measure_devices(context: ServiceContext, call: Call, message: wire.MeasureDevices) -> wire.Profiles:
    """Measure, or tell what was measured."""
    if message.refresh:
        context.deployments.check_open()
    return await context.profiles.get(call.stream, refresh=message.refresh)


async def drain(context: ServiceContext, _call: Call, _message: wire.Drain) -> wire.Done:
    """Begin to shut down."""
    context.request_drain()
    return wire.Done()


async def _lasting_beyond_caller(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.create_task(work)
    _lasting.add(task)
    task.add_done_callback(_lasting.discard)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
