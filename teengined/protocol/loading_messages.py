"""Messages about plans, loading, and the loaded models. Part of `messages`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from teengined.core.device import DeviceSpec, HostProfile
from teengined.core.plan import Objective, Plan

__all__ = [
    "Deployment",
    "DeploymentList",
    "DraftedTokens",
    "ExpertFigures",
    "KvTiers",
    "ListDeployments",
    "LoadModel",
    "LoadProgress",
    "Loaded",
    "PlanModel",
    "PlanReply",
    "UnloadModel",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListDeployments:
    """Ask for the loaded models."""

    placements: bool = True
    """Whether plans tell where each unit rests. Without, `Stage.units` is empty, which spares a model of many experts
    most of the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFigures:
    """How the expert caches of a deployment do. Rates are shares of what layers asked for, the latest weighing most."""

    num_experts: int
    """Of all layers."""
    num_slots: int
    """So many of them are cached at a time."""
    expected_hit_rate: float
    """That the plan reckoned with."""
    policies: tuple[str, ...] = ()
    """For each stage, who decides which expert gives way; empty before the first step."""
    hit_rate: float = 0.0
    best_hit_rate: float = 0.0
    """Of a cache that knows the future (Belady's bound), on the same requests."""
    simulated_hit_rate: float = 0.0
    """Of the policy's own simulation, on the same requests."""
    bytes_per_token: int = 0
    """Of experts, read for one token of one stream: as planned until it is measured."""
    guessed_rate: float = 0.0
    """Of what was asked for and not cached, the share whose reads began before, on a guess of the layer's router."""
    guess_right_rate: float = 0.0
    """Of the guesses, those that were asked for."""
    guessing_stages: tuple[bool, ...] = ()
    """For each stage with such a cache, whether guesses made its steps faster when that was last measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedTokens:
    """What became of tokens that were guessed ahead for one class of requests, since the load."""

    request_class: str
    """`greedy`, `sampled`, or `grammar`."""
    source: str
    """`lookup`: in the sequence itself; `draft`: by a draft model."""
    is_on: bool
    """Whether it makes the deployment faster at present; where it does not, it is tried now and then."""
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTiers:
    """KV blocks below the devices, and what became of those that had to leave them, since the load."""

    num_host_slots: int = 0
    """Blocks that host memory may hold."""
    num_host_blocks: int = 0
    num_disk_slots: int = 0
    num_disk_blocks: int = 0
    num_spooled: int = 0
    """Copied to host memory."""
    num_restored: int = 0
    """Copied back."""
    num_fetched: int = 0
    """Of these, read from disk before."""
    num_dropped: int = 0
    """That found no room, gave way to others, or went wrong: who needs them computes them again."""
    num_failed: int = 0
    """Writes and reads of the disk that went wrong."""
    problem: str = ""
    """Why the last of them did."""
    num_recomputed_tokens: int = 0
    """Tokens of preempted sequences that were computed again."""
    num_promised_blocks: int = 0
    """That the live requests may come to need, each counted alone."""
    compute_block_seconds: float = 0.0
    """What computing a context's first block takes; deeper ones take longer. Measured or predicted, as the next two."""
    host_block_seconds: float = 0.0
    """Copying it between device and host memory."""
    disk_block_seconds: float = 0.0
    """Reading it from disk."""


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
    experts: ExpertFigures | None = None
    """None where no routed expert is streamed."""
    stage_bubble_seconds: tuple[float, ...] = ()
    """For each stage: all of that time since the load."""
    drafted: tuple[DraftedTokens, ...] = ()
    kv_tiers: KvTiers = field(default_factory=KvTiers)
    host_pool_bytes: int = 0
    """Of the host's pool, other deployments' share in them not taken off."""
    draft: str = ""
    """The loaded model that guesses for it; empty: none. It may be unloaded by now."""
    speculation: str = ""
    """Where guesses may come from, as `LoadModel` names it."""
    numerics: str = ""
    kv_dtype: str = ""
    """These two as `PlanModel` names them, the configured default filled in."""
    num_host_units: int = 0
    """Units that are streamed from host memory; also told without placements, as the next one."""
    num_disk_units: int = 0


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
    speculation: Literal["", "off", "lookup", "draft", "auto"] = ""
    """Where guesses come from that are verified many at a time. Empty: the configured default."""
    draft: str = ""
    """A loaded model with the same vocabulary that guesses for this one; empty: none."""


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
