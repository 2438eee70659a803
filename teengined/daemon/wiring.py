"""The composition root: the one place where the parts of a daemon meet."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import zmq.asyncio

from teengined.core.device import DeviceDescription, DeviceSpec
from teengined.core.memory_limits import read_host_memory
from teengined.daemon.client_socket import ClientSocket, bind_client_socket
from teengined.daemon.config import Directories
from teengined.daemon.runtime_directory import RuntimeDirectory
from teengined.daemon.supervise import launch
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.store import PackageStore
from teengined.protocol.worker_messages import WORKER_LIMITS
from teengined.service.config import LoadedConfig
from teengined.service.context import ServiceContext
from teengined.service.deployments import DeploymentSet
from teengined.service.devices import describe_devices, resolve_devices, resolve_host_pool
from teengined.service.disk_health import DiskHealth
from teengined.service.grammar_check import CheckLimits, GrammarChecker
from teengined.service.handlers.metrics import read_metrics
from teengined.service.handlers.table import handler_table
from teengined.service.host_pool import HostPool
from teengined.service.host_pool_socket import HostPoolSocket
from teengined.service.metrics.call_meter import SocketMeter
from teengined.service.metrics.listener import MetricsListener
from teengined.service.planning import Planner
from teengined.service.prefix_store import PrefixStore
from teengined.service.profiles import ProfileStore
from teengined.service.server import Server
from teengined.service.settings import CheckSettings, KvSettings, WorkerSettings
from teengined.service.spool import SpoolDirectory
from teengined.service.workers import WorkerPool

__all__ = ["Daemon", "Inventory", "take_inventory", "wire"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is installed and configured, found without touching the runtime directory."""

    loaded: LoadedConfig
    registry: PluginRegistry
    descriptions: dict[str, DeviceDescription]
    specs: tuple[DeviceSpec, ...]
    host_pool_bytes: int
    """Most that the pool of host memory may hold."""


@dataclass(slots=True, kw_only=True, eq=False)
class Daemon:
    """A wired daemon: listening, not serving yet."""

    context: ServiceContext
    server: Server
    metrics: MetricsListener
    _host_socket: HostPoolSocket
    _socket: ClientSocket
    _runtime: RuntimeDirectory
    _zmq: zmq.asyncio.Context

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return self._socket.endpoint

    async def close(self, *, now: bool = False) -> None:
        """Fail what runs, stop the workers (`now`: kill them), and give everything back."""
        await self.metrics.close()
        await self.context.deployments.abandon()
        await asyncio.sleep(0)  # Calls that just failed answer their clients.
        await self.server.close()
        await self.context.grammars.close()
        await self.context.pool.close(now=now)
        await self.context.deployments.give_back_kept()
        await self._host_socket.close()
        self.context.deployments.host_pool.close()
        self._socket.close()
        self._zmq.term()
        shutil.rmtree(self.context.runtime_dir / "stages", ignore_errors=True)
        self.context.deployments.spool.clear()
        self._runtime.close()


def take_inventory(loaded: LoadedConfig) -> Inventory:
    """Return plugins and devices.

    Raises:
        PluginError: a plugin breaks its contract.
        ConfigError: a device cannot be, or there is none.
    """
    config = loaded.config
    registry = PluginRegistry.load(config.plugins.blocked)
    registry.placement_policy(config.planning.policy)
    registry.scheduling_policy(config.batching.scheduling_policy)
    wanted = (*config.plugins.discover, *(device.id.partition(":")[0] for device in config.devices))
    descriptions = describe_devices(registry, tuple(dict.fromkeys(wanted)))
    found = {key: item for key, item in descriptions.items() if item.driver in config.plugins.discover}
    memory = read_host_memory()
    specs = resolve_devices(config, registry, found, memory)
    host_pool_bytes = resolve_host_pool(config, specs, memory)
    return Inventory(
        loaded=loaded, registry=registry, descriptions=descriptions, specs=specs, host_pool_bytes=host_pool_bytes
    )


def wire(inventory: Inventory, directories: Directories, request_drain: Callable[[], None]) -> Daemon:
    """Take the runtime directory, listen, and put the parts together. Call it on the event loop's thread.

    Raises:
        AlreadyRunning: another daemon owns the runtime directory.
        ConfigError: a directory or the socket cannot be had.
    """
    runtime = RuntimeDirectory(directories.runtime)
    context = zmq.asyncio.Context()
    try:
        config = inventory.loaded.config
        socket = bind_client_socket(context, config, directories.runtime, os.environ)
        pool = WorkerPool(inventory.specs, _with_command(config.worker), WORKER_LIMITS, launch)
        pool.open(context, directories.runtime / "workers")
        host_socket = HostPoolSocket(HostPool(inventory.host_pool_bytes))
        host_socket.open(directories.runtime / "workers" / "memory.sock")
    except BaseException:
        context.destroy(linger=0)
        runtime.close()
        raise
    service = _service(inventory, directories, pool, host_socket, request_drain)
    server = Server(
        socket=socket.router, settings=config.protocol, handlers=handler_table(service), meter=service.socket_meter
    )
    listener = MetricsListener(config.metrics, lambda: read_metrics(service).text)
    return Daemon(
        context=service,
        server=server,
        metrics=listener,
        _host_socket=host_socket,
        _socket=socket,
        _runtime=runtime,
        _zmq=context,
    )


def _service(
    inventory: Inventory,
    directories: Directories,
    pool: WorkerPool,
    host_socket: HostPoolSocket,
    request_drain: Callable[[], None],
) -> ServiceContext:
    config = inventory.loaded.config
    store = PackageStore(directories.store)
    profiles = ProfileStore(
        directory=directories.state / "profiles",
        measured_directory=directories.store,
        specs=inventory.specs,
        descriptions=inventory.descriptions,
        settings=config.planning,
        environment={**os.environ, "TEENGINE_WORKER_PARENT": str(os.getpid())},
    )
    planner = Planner(
        config=config,
        registry=inventory.registry,
        store=store,
        profiles=profiles,
        specs=inventory.specs,
        host_pool=host_socket.pool,
    )
    spool_root = Path(config.kv.spool_dir).absolute() if config.kv.spool_dir else directories.state / "spool"
    spool = SpoolDirectory(root=spool_root, runtime_dir=directories.runtime)
    spool.clear()
    kept = _prefix_store(config.kv, spool_root, directories.state)
    kept.trim()
    deployments = DeploymentSet(
        config=config,
        planner=planner,
        pool=pool,
        runtime_dir=directories.runtime,
        spool=spool,
        kept=kept,
        host_pool=host_socket.pool,
        host_pool_path=host_socket.path,
        disks=DiskHealth(paths=(directories.store, *map(Path, config.store.paths))),
    )
    return ServiceContext(
        loaded=inventory.loaded,
        runtime_dir=directories.runtime,
        started_seconds=time.monotonic(),
        registry=inventory.registry,
        specs=inventory.specs,
        descriptions=inventory.descriptions,
        store=store,
        profiles=profiles,
        planner=planner,
        pool=pool,
        deployments=deployments,
        grammars=GrammarChecker(_check_limits(config.checks)),
        socket_meter=SocketMeter(deployments.calls_of),
        request_drain=request_drain,
    )


def _prefix_store(settings: KvSettings, spool_root: Path, state_dir: Path) -> PrefixStore:
    return PrefixStore(
        root=spool_root / "kept",
        key_path=state_dir / "spool.key",  # Not beside what it vouches for, which may lie on another disk.
        max_bytes=settings.kept_spool if settings.disk_spool else 0,
        max_age_seconds=settings.kept_age,
        now=time.time,
    )


def _with_command(settings: WorkerSettings) -> WorkerSettings:
    return replace(settings, command=settings.command or (sys.executable, "-P", "-m", "teengined.engine.worker"))


def _check_limits(settings: CheckSettings) -> CheckLimits:
    return CheckLimits(
        cpu_seconds=settings.grammar_seconds,
        wall_seconds=settings.grammar_wall,
        load_seconds=settings.grammar_load,
        memory_bytes=settings.grammar_memory,
        num_processes=settings.grammar_processes,
        max_waiting=settings.grammar_waiting,
        max_owner_waiting=settings.grammar_owner_waiting,
    )
