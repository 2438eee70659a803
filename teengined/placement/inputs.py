"""What the planner is told: the model, the devices and what was measured on them, and what the operator asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from teengined.core.device import DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.core.model import ModelManifest
from teengined.core.plan import Objective
from teengined.interfaces.policy import Assignment

__all__ = ["PlanningInput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningInput:
    """Everything that a plan depends on. Equal inputs give equal plans."""

    manifest: ModelManifest
    devices: tuple[DeviceSpec, ...]
    profiles: Mapping[str, DeviceProfile]
    """By device id."""
    host: HostProfile
    context_tokens: int
    num_slots: int = 1
    objective: Objective = Objective.LATENCY
    links: tuple[LinkProfile, ...] = ()
    """Measured paths; several between one pair where several transports were measured."""
    resident_fraction: float | None = None
    """Most of a stage's bytes (layers and head) that may be resident, 0 … 1; None: whatever fits."""
    assignment: tuple[Assignment, ...] | None = None
    """Stages that the operator dictates; the policy is not asked then."""
    ring_slots: int = 3
    """Groups that the staging ring holds: one computing, one arriving, one requested."""
    max_step_tokens: int = 512
    max_logit_rows: int = 128
    """Rows of logits that one step may have."""
    block_tokens: int = 16
    """KV is reserved in whole blocks of so many tokens."""
    kv_dtype: Literal["auto", "int8"] = "auto"
    """`auto`: the compute dtype of each device."""
    reserved_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    """By device id: what other deployments hold of its budget."""
    reserved_host_bytes: int = 0
    """Of the host tier, held by other deployments."""
    held_unit_ids: frozenset[str] = frozenset()
    """Units that other deployments hold in the host tier and share: there they take nothing more."""
    prefer_transport: str | None = None
    """Taken where a link was measured with it, and for links that nobody measured."""
    default_transport: str = "shm"
    default_latency_seconds: float = 150e-6
    """Of links that nobody measured. Two processes of one host wake each other in about this time."""
    default_bytes_per_second: float = 2e9
    """Of links that nobody measured: a copy into shared memory and a copy out, with room for a busy host."""

    @property
    def num_blocks(self) -> int:
        """Blocks of KV that hold every slot at the full context."""
        return self.num_slots * math.ceil(self.context_tokens / self.block_tokens)

    def __post_init__(self) -> None:
        """Refuse numbers that no plan can mean.

        Raises:
            ValueError: names the field.
        """
        for name in ("context_tokens", "num_slots", "max_step_tokens", "max_logit_rows", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.ring_slots < 2:
            raise ValueError(f"ring_slots must be at least 2 (one computing, one arriving), not {self.ring_slots}")
        if self.resident_fraction is not None and not 0 <= self.resident_fraction <= 1:
            raise ValueError(f"resident_fraction must be between 0 and 1, not {self.resident_fraction}")
