"""A plan: which device runs which layers, where each unit lives, and what that was predicted to cost."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ExpertCache", "Objective", "Plan", "Stage", "StageCost", "StageExperts", "Tier", "UnitPlacement"]


class Tier(StrEnum):
    """Where a unit's bytes rest between uses. Below `DEVICE` they are streamed every step."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class Objective(StrEnum):
    """What a plan minimises: time of one token of one stream, or time between tokens of a full pipeline."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlacement:
    """One unit's home."""

    unit_id: str
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Predicted seconds of one decode step of one token on one stage, and what bounds it."""

    compute_seconds: float
    host_seconds: float
    """Host-to-device copies of streamed units."""
    disk_seconds: float
    hop_seconds: float
    """Sending the activation on to the next stage."""
    seconds: float
    """Of the stage: the largest of compute, host and disk, which overlap, plus the hop."""
    binding: str
    """`compute`, `host`, `disk` or `hop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCache:
    """Slots that routed experts of about one size share; any expert of the stage's layers may lie in any slot."""

    slot_bytes: int
    num_slots: int
    num_experts: int
    """That want a slot."""
    num_host_slots: int = 0
    """More slots in host memory, behind those of a device that has memory of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExperts:
    """Routed experts of a stage that do not all fit: they come one by one when they are asked for."""

    caches: tuple[ExpertCache, ...]
    """One for each size of experts, largest first."""
    num_bytes: int
    """Of all routed experts of the stage."""
    bytes_per_token: int
    """Of the experts that a token goes to."""
    hit_rate: float
    """Expected share of these that are cached: before anything is measured, the share of all that is."""

    @property
    def missed_bytes_per_token(self) -> int:
        """Of the bytes of a token's experts, those that are expected not to be cached."""
        return round((1 - self.hit_rate) * self.bytes_per_token)

    @property
    def cache_bytes(self) -> int:
        """What the slots take of the device's budget."""
        return sum(cache.num_slots * cache.slot_bytes for cache in self.caches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Contiguous layers `[layer_start, layer_end)` on one device."""

    index: int
    device_id: str
    layer_start: int
    layer_end: int
    has_embedding: bool
    has_head: bool
    compute_dtype: str
    units: tuple[UnitPlacement, ...]
    """In order of execution. A tied head lists the embedding unit again only where it is not there already."""
    resident_bytes: int
    ring_bytes: int
    """Staging ring for streamed units; 0 when all are resident."""
    kv_bytes: int
    workspace_bytes: int
    transport: str
    """Transport to the next stage; empty on the last."""
    cost: StageCost
    streamed_bytes: int = 0
    """Bytes of layers and head that pass through the ring for every token (or step), and of routed experts that a
    token is expected to ask for and not to find cached."""
    experts: StageExperts | None = None
    """None where the stage has no routed experts, or all of them are resident."""

    @property
    def total_bytes(self) -> int:
        """What the stage takes of its device's budget."""
        cache_bytes = 0 if self.experts is None else self.experts.cache_bytes
        return self.resident_bytes + self.ring_bytes + cache_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole mapping, immutable. `lower_bound_seconds` holds for every plan on these devices."""

    model: str
    policy: str
    objective: Objective
    context_tokens: int
    num_slots: int
    """Sequences whose KV fits at the full context."""
    stages: tuple[Stage, ...]
    seconds_per_token: float
    """One stream: sum of stages and hops."""
    period_seconds: float
    """Full pipeline: the slowest stage, hop or shared host resource."""
    prefill_seconds: float
    """Predicted time to the first token of a prompt of 512 tokens (or the context, if shorter)."""
    streamed_bytes_per_token: int
    lower_bound_seconds: float
    """Of the chosen objective."""
    gap: float
    """(achieved - lower bound) / achieved, of the chosen objective; 0 is proven optimal."""
    unused_device_ids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
