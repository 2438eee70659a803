"""Messages between a client and the daemon. A closed set: each class has one tag in `CLIENT_MESSAGES`.

One call = one envelope from the client with a correlation number of its choosing; every envelope that answers it
carries the same number. A call ends with exactly one *final* message (`ErrorReply` or the call's own final kind);
streams send others before it.

    call            streams                    final
    Hello                                      Welcome
    GetStatus                                  Status
    ListModels                                 ModelList
    ShowModel                                  ModelDetail
    RemoveModel                                Done
    ListDeployments                            DeploymentList
    PlanModel                                  PlanReply
    LoadModel       LoadProgress               Loaded
    UnloadModel                                Done
    Generate        Accepted, TokenChunk       Finished
    Grant           (nothing; a word within a Generate's call)
    Cancel                                     Done (without request_id: nothing; a word within the call that ends)
    Score                                      Scored
    Embed                                      Embedded
    ListRequests                               RequestList
    ListPlugins                                PluginList
    ShowConfig                                 ConfigReply
    MeasureDevices  LoadProgress               Profiles
    GetMetrics                                 Metrics
    Drain                                      Done
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from teengined.core.device import DeviceDescription, DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.protocol.answer_messages import (
    Accepted,
    Cancel,
    Embed,
    Embedded,
    Finished,
    Generate,
    Grant,
    ListRequests,
    RequestItem,
    RequestList,
    Score,
    Scored,
    TokenChunk,
    ToolCallDelta,
)
from teengined.protocol.loading_messages import (
    Deployment,
    DeploymentList,
    DraftedTokens,
    ExpertFigures,
    ListDeployments,
    Loaded,
    LoadModel,
    LoadProgress,
    PlanModel,
    PlanReply,
    UnloadModel,
)
from teengined.protocol.metric_messages import Distribution, GetMetrics, MetricFamily, Metrics, MetricSeries

__all__ = [
    "CLIENT_MESSAGES",
    "Accepted",
    "Cancel",
    "ConfigItem",
    "ConfigReply",
    "Deployment",
    "DeploymentList",
    "DeviceStatus",
    "DiskStatus",
    "Distribution",
    "Done",
    "DraftedTokens",
    "Drain",
    "Embed",
    "Embedded",
    "ErrorReply",
    "ExpertFigures",
    "Finished",
    "Generate",
    "GetMetrics",
    "GetStatus",
    "Grant",
    "Hello",
    "HostPoolStatus",
    "ListDeployments",
    "ListModels",
    "ListPlugins",
    "ListRequests",
    "LoadModel",
    "LoadProgress",
    "Loaded",
    "MeasureDevices",
    "MetricFamily",
    "MetricSeries",
    "Metrics",
    "ModelDetail",
    "ModelList",
    "ModelSummary",
    "PlanModel",
    "PlanReply",
    "PluginItem",
    "PluginList",
    "Profiles",
    "RemoveModel",
    "RequestItem",
    "RequestList",
    "Score",
    "Scored",
    "ShowConfig",
    "ShowModel",
    "Status",
    "TokenChunk",
    "ToolCallDelta",
    "UnloadModel",
    "Welcome",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First call of a connection; optional, it tells both sides their versions."""

    client: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The daemon's answer to `Hello`."""

    version: str
    host: str
    pid: int
    max_message_bytes: int = 4 << 20
    """Largest request that the daemon takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus:
    """Ask for the one screen of truth."""

    placements: bool = True
    """As in `ListDeployments`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """A configured device and its worker."""

    spec: DeviceSpec
    description: DeviceDescription | None
    worker_pid: int | None
    state: str
    """`idle` (no worker), `starting`, `ready`, `failed`, `backoff`."""
    planned_bytes: int
    """Of the budget, by the deployments on it."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStatus:
    """A place that packages are read from."""

    path: str
    num_failures: int = 0
    """Reads that failed, also when repeated, since the daemon started."""
    problem: str = ""
    """The last one."""
    failed_unix_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPoolStatus:
    """The host memory in which units wait for devices with memory of their own."""

    budget_bytes: int = 0
    planned_bytes: int = 0
    """Of the budget, by all deployments, what they share counted once."""
    filled_bytes: int = 0
    """Of units that are there."""
    num_units: int = 0
    unshared_bytes: int = 0
    """What the deployments would take if each had its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The daemon as a whole."""

    version: str
    pid: int
    uptime_seconds: float
    state: str
    """`ready` or `draining`."""
    host: str
    runtime_dir: str
    devices: tuple[DeviceStatus, ...]
    deployments: tuple[Deployment, ...]
    num_running: int
    num_queued: int
    num_models: int
    rss_bytes: int
    disks: tuple[DiskStatus, ...] = ()
    host_pool: HostPoolStatus = field(default_factory=HostPoolStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListModels:
    """Ask for the packages in the store."""

    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One package, as `teengine ls` shows it."""

    name: str
    digest: str
    size_bytes: int
    architecture: str
    precision: str
    num_parameters: int
    modified_unix_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """Answer to `ListModels`, by name."""

    models: tuple[ModelSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowModel:
    """Ask for one package."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetail:
    """One package in full, without its unit table."""

    summary: ModelSummary
    source: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    num_experts: int
    num_units: int
    compute_dtype: str
    kv_bytes_per_token: int
    numeric_notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveModel:
    """Delete a package that is not loaded."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPlugins:
    """Ask which plugins are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginItem:
    """One registered class."""

    kind: str
    """`driver`, `placement-policy`, `scheduling-policy`, `precision`, `precision-policy`, `transport`, `source`."""
    name: str
    entry_point: str
    distribution: str
    available: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginList:
    """Answer to `ListPlugins`."""

    plugins: tuple[PluginItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowConfig:
    """Ask for the running configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigItem:
    """One setting: dotted key, value as text, and where it came from."""

    key: str
    value: str
    origin: str
    """`default`, `file PATH`, `env NAME` or `flag`."""
    doc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReply:
    """Answer to `ShowConfig`."""

    items: tuple[ConfigItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureDevices:
    """Measure devices, disk and links now, or return what is cached."""

    refresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """Answer to `MeasureDevices`."""

    devices: tuple[DeviceProfile, ...]
    host: HostProfile
    links: tuple[LinkProfile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Finish what runs, refuse what is new, then exit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The call did what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """The call failed. Fields as in `core.errors`."""

    code: str
    message: str
    hint: str
    retryable: bool
    retry_after_seconds: float | None = None


# Tag on the wire -> class. Tags are never reused; a new field needs a default, a changed meaning a new tag.
CLIENT_MESSAGES: Mapping[str, type] = {
    "hello": Hello,
    "welcome": Welcome,
    "get_status": GetStatus,
    "status": Status,
    "list_models": ListModels,
    "model_list": ModelList,
    "show_model": ShowModel,
    "model_detail": ModelDetail,
    "remove_model": RemoveModel,
    "list_deployments": ListDeployments,
    "deployment_list": DeploymentList,
    "plan_model": PlanModel,
    "plan": PlanReply,
    "load_model": LoadModel,
    "load_progress": LoadProgress,
    "loaded": Loaded,
    "unload_model": UnloadModel,
    "generate": Generate,
    "accepted": Accepted,
    "token_chunk": TokenChunk,
    "finished": Finished,
    "cancel": Cancel,
    "grant": Grant,
    "score": Score,
    "scored": Scored,
    "embed": Embed,
    "embedded": Embedded,
    "list_requests": ListRequests,
    "request_list": RequestList,
    "list_plugins": ListPlugins,
    "plugin_list": PluginList,
    "show_config": ShowConfig,
    "config": ConfigReply,
    "measure_devices": MeasureDevices,
    "profiles": Profiles,
    "get_metrics": GetMetrics,
    "metrics": Metrics,
    "drain": Drain,
    "done": Done,
    "error": ErrorReply,
}
