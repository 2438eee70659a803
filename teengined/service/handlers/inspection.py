"""Calls that only look: versions, status, plugins, configuration."""

import os
import socket
import time

from teengined import __version__
from teengined.protocol import messages as wire
from teengined.service.context import ServiceContext
from teengined.service.host import rss_bytes
from teengined.service.server import Call

__all__ = ["get_status", "hello", "list_plugins", "show_config"]


async def hello(context: ServiceContext, _call: Call, _message: wire.Hello) -> wire.Welcome:
    """Tell version, host, process and the largest message taken."""
    return wire.Welcome(
        version=__version__,
        host=socket.gethostname(),
        pid=os.getpid(),
        max_message_bytes=context.loaded.config.protocol.max_message,
    )


async def get_status(context: ServiceContext, _call: Call, message: wire.GetStatus) -> wire.Status:
    """Tell the one screen of truth."""
    deployments = context.deployments
    return wire.Status(
        version=__version__,
        pid=os.getpid(),
        uptime_seconds=time.monotonic() - context.started_seconds,
        state="draining" if deployments.draining else "ready",
        host=socket.gethostname(),
        runtime_dir=str(context.runtime_dir),
        devices=_devices(context),
        deployments=deployments.describe(placements=message.placements),
        num_running=deployments.num_running,
        num_queued=deployments.num_queued,
        num_models=len(context.store.names()),
        rss_bytes=rss_bytes(),
        disks=deployments.disks.describe(),
        host_pool=deployments.host_pool.describe(),
    )


async def list_plugins(context: ServiceContext, _call: Call, _message: wire.ListPlugins) -> wire.PluginList:
    """Tell what is installed and whether it works here."""
    items: list[wire.PluginItem] = []
    for plugin in context.registry.items():
        available, reason = True, ""
        if plugin.kind == "driver":
            availability = context.registry.driver(plugin.name).availability()
            available, reason = availability.available, availability.reason
        items.append(
            wire.PluginItem(
                kind=plugin.kind.replace(" ", "-"),
                name=plugin.name,
                entry_point=plugin.entry_point,
                distribution=plugin.distribution,
                available=available,
                reason=reason,
            )
        )
    return wire.PluginList(plugins=tuple(items))


async def show_config(context: ServiceContext, _call: Call, _message: wire.ShowConfig) -> wire.ConfigReply:
    """Tell the running configuration."""
    return wire.ConfigReply(items=context.loaded.items)


def _devices(context: ServiceContext) -> tuple[wire.DeviceStatus, ...]:
    reserved = context.deployments.reserved_bytes()
    found: list[wire.DeviceStatus] = []
    for spec in context.specs:
        state, pid, problem = context.pool.state_of(spec.id)
        found.append(
            wire.DeviceStatus(
                spec=spec,
                description=context.descriptions.get(spec.id),
                worker_pid=pid,
                state=state,
                planned_bytes=reserved.get(spec.id, 0),
                problem=problem,
            )
        )
    return tuple(found)
