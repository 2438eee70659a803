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
    Drain                                      Done
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from teengined.core.device import DeviceDescription, DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.core.plan import Objective, Plan
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

__all__ = [
    "CLIENT_MESSAGES",
    "Accepted",
    "Cancel",
    "ConfigItem",
    "ConfigReply",
    "Deployment",
    "DeploymentList",
    "DeviceStatus",
    "Done",
    "Drain",
    "Embed",
    "Embedded",
    "ErrorReply",
    "Finished",
    "Generate",
    "GetStatus",
    "Grant",
    "Hello",
    "ListDeployments",
    "ListModels",
    "ListPlugins",
    "ListRequests",
    "LoadModel",
    "LoadProgress",
    "Loaded",
    "MeasureDevices",
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
    deployments: tuple["Deployment", ...]
    num_running: int
    num_queued: int
    num_models: int
    rss_bytes: int


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
class ListDeployments:
    """Ask for the loaded models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A loaded (or loading) model, as `teengine ps` shows it."""

    id: str
    model: str
    state: str
    """`loading`, `ready`, `failed`, `unloading`."""
    plan: Plan
    size_bytes: int
    precision: str
    num_running: int
    num_queued: int
    num_completed: int
    tokens_per_second: float
    """Measured over the last answers; 0 before the first."""
    bound_tokens_per_second: float
    problem: str = ""
    num_blocks: int = 0
    """Of KV."""
    num_used_blocks: int = 0
    """Held by running sequences."""
    num_cached_blocks: int = 0
    """Held for prompts that begin alike; given up when sequences need them."""
    num_queued_tokens: int = 0
    """Prompt tokens that wait for their first step."""
    num_preempted: int = 0
    """Sequences that had to give up their KV and compute it again, since the load."""
    total_tokens_per_second: float = 0.0
    """Of all answers together, over the last seconds."""
    stage_bubbles: tuple[float, ...] = ()
    """For each stage: the share of the time with steps under way in which it had nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentList:
    """Answer to `ListDeployments`."""

    deployments: tuple[Deployment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanModel:
    """Ask for a plan without loading."""

    model: str
    device_ids: tuple[str, ...] = ()
    """Empty: all configured devices."""
    context_tokens: int = 0
    """0: the configured default, or the model's maximum if smaller."""
    num_slots: int = 0
    """0: the configured default."""
    policy: str = ""
    """Empty: the configured one."""
    objective: Objective = Objective.LATENCY
    kv_dtype: Literal["", "auto", "int8"] = ""
    """How keys and values are stored: in the compute dtype, or as int8. Empty: the configured default."""
    numerics: Literal["", "default", "strict"] = ""
    """`strict`: a position's logits do not depend on batch mates, chunking, cache hits or threads. Empty: the
    configured default."""
    resident_fraction: float | None = None
    """Hold at most this share of each stage's layer bytes resident; for benchmarks and parity. None: what fits."""
    assignment: Mapping[str, int] | None = None
    """Force device id -> number of layers, in this order; for tests and experts. None: the policy decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReply:
    """Answer to `PlanModel`."""

    plan: Plan
    model_bytes: int
    precision: str
    devices: tuple[DeviceSpec, ...]
    host_profile: HostProfile
    suggestions: tuple[str, ...] = ()
    """What would make it faster, largest gain first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel:
    """Load a package as planned. `name` lets one package be loaded twice."""

    plan: PlanModel
    name: str = ""
    """What requests call it; empty: the model's name."""
    verify: bool = True
    """Check every unit's digest while it is first read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far a long job is. `done` never falls, `total` never changes."""

    phase: str
    done: int
    total: int
    """Bytes, or steps where `unit` says so."""
    unit: str = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The model answers requests now."""

    deployment: Deployment
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadModel:
    """Give a model's memory back. Running requests finish first unless `now`."""

    model: str
    now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPlugins:
    """Ask which plugins are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginItem:
    """One registered class."""

    kind: str
    """`driver`, `placement-policy`, `scheduling-policy`, `precision`, `transport`, `source`."""
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
    "drain": Drain,
    "done": Done,
    "error": ErrorReply,
}
