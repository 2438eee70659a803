"""What handlers work with: the parts of one running daemon, put together by its wiring."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from teengined.core.device import DeviceDescription, DeviceSpec
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.store import PackageStore
from teengined.service.config import LoadedConfig
from teengined.service.deployments import DeploymentSet
from teengined.service.grammar_check import GrammarChecker
from teengined.service.metrics.call_meter import SocketMeter
from teengined.service.planning import Planner
from teengined.service.profiles import ProfileStore
from teengined.service.workers import WorkerPool

__all__ = ["ServiceContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceContext:
    """Everything that a call may need."""

    loaded: LoadedConfig
    runtime_dir: Path
    started_seconds: float
    """Monotonic."""
    registry: PluginRegistry
    specs: tuple[DeviceSpec, ...]
    descriptions: Mapping[str, DeviceDescription]
    store: PackageStore
    profiles: ProfileStore
    planner: Planner
    pool: WorkerPool
    deployments: DeploymentSet
    grammars: GrammarChecker
    socket_meter: SocketMeter
    request_drain: Callable[[], None]
    """Begin to shut down as SIGTERM does."""
