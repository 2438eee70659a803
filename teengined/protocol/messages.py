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
    Cancel                                     Done
    Score                                      Scored
    Embed                                      Embedded
    ListRequests                               RequestList
    ListPlugins                                PluginList
    ShowConfig                                 ConfigReply
    MeasureDevices  LoadProgress               Profiles
    Drain                                      Done
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from teengined.core.device import DeviceDescription, DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.core.plan import Objective, Plan
from teengined.core.request import ChatMessage, FinishReason, TokenLogprobs, Usage
from teengined.core.sampling import SamplingParams

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
class Generate:
    """Ask for one answer. Exactly one of `prompt`, `messages` and `token_ids` is given."""

    model: str
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    token_ids: tuple[int, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    timeout_seconds: float = 0.0
    """0: the configured maximum."""
    client_id: str = ""
    """A name of the caller's choosing. While a request with it is under way, its owner cannot start another."""
    priority: int = 0
    """-100 to 100; higher goes first."""
    cache_salt: str = ""
    """Cached prefixes are shared only between requests of one owner with the same salt."""
    tools: tuple[str, ...] = ()
    """JSON of each tool that the chat template is told of."""
    template_options: Mapping[str, str] = field(default_factory=dict[str, str])
    """More variables for the chat template, each JSON."""
    parse: bool = False
    """Tell reasoning and tool calls apart from text, where the model's format is known."""
    credits: int = 0
    """Chunks that may be sent before the first `Grant`; 0: without limit. What may not be sent yet is joined into
    larger chunks, so that a slow reader costs a bounded buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Take so many more chunks. Sent under the correlation of its `Generate`; never answered."""

    request_id: str
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is admitted. `request_id` is made by the daemon and unique for its lifetime."""

    request_id: str
    num_prompt_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What some tokens add to one tool call. Its first delta has id and name; later ones only more arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """Tokens of an answer in order. `sequence` counts chunks of this request from 0 without gap."""

    request_id: str
    sequence: int
    token_ids: tuple[int, ...]
    text: str
    """What these tokens add to the text; never half a code point (it arrives with a later chunk)."""
    choice: int = 0
    reason: FinishReason | None = None
    """Set on the last chunk of a choice."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they were asked for."""
    reasoning: str = ""
    """What these tokens add to the model's thinking, where it is told apart."""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of an answer: of all its choices."""

    request_id: str
    sequence: int
    reason: FinishReason
    """Of the first choice."""
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens but the first, where they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop a request. Its own call ends with `Finished(reason=cancelled)`."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Ask how probable a continuation is. Text or token ids, both sides alike."""

    model: str
    context: str = ""
    continuation: str = ""
    context_ids: tuple[int, ...] = ()
    continuation_ids: tuple[int, ...] = ()
    top: int = 0
    """Alternatives to tell for each position."""
    timeout_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Answer to `Score`."""

    logprobs: tuple[TokenLogprobs, ...]
    """Of each token of the continuation."""
    total: float
    """Their sum: the log-likelihood of the continuation."""
    is_greedy: bool
    """Whether each token is the most probable one at its place."""
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Ask for one vector for each text or list of token ids."""

    model: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    timeout_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Answer to `Embed`, in its order."""

    vectors: tuple[bytes, ...]
    """fp32, little-endian."""
    dimensions: int
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequests:
    """Ask for the requests under way."""

    model: str = ""
    """Empty: of all loaded models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestItem:
    """One request under way. Never its text."""

    request_id: str
    model: str
    owner: str
    client_id: str
    state: str
    """`queued`, `prefill`, `decode`, or `waiting for its reader`."""
    priority: int
    num_choices: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_emitted_tokens: int
    max_tokens: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestList:
    """Answer to `ListRequests`, oldest first."""

    requests: tuple[RequestItem, ...]


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
