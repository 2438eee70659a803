"""Policies choose: a placement policy cuts the model into stages, a scheduling policy orders sequences."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from teengined.core.plan import Objective

__all__ = ["Assignment", "PlacementPolicy", "PlacementProblem", "SchedulingPolicy", "SequenceView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Device `device` (an index into the problem's devices) runs layers `[layer_start, layer_end)`."""

    device: int
    layer_start: int
    layer_end: int


class PlacementProblem(ABC):
    """What a placement policy may ask. All answers are pure; seconds are of one decode step of one token."""

    num_layers: int
    device_ids: tuple[str, ...]
    memory_bytes: tuple[int, ...]
    """Per device: what is left for weights, after workspace and KV of one layer."""
    layer_bytes: tuple[int, ...]
    objective: Objective

    @abstractmethod
    def stage_seconds(self, device: int, layer_start: int, layer_end: int) -> float:
        """Return the cost of a stage; infinite where it cannot run there (not even one layer fits the ring)."""

    @abstractmethod
    def hop_seconds(self, source: int, target: int) -> float:
        """Return the cost of one activation between two devices."""

    @abstractmethod
    def exact_assignment(self) -> tuple[Assignment, ...]:
        """Return an optimal assignment for the objective (exact up to 8 devices, beam search beyond).

        Raises:
            DoesNotFit: no assignment has finite cost.
        """


class PlacementPolicy(ABC):
    """Cuts layers into stages. Stateless, pure."""

    name: ClassVar[str]

    @abstractmethod
    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        """Return stages in order of execution that cover every layer once, each device at most once.

        Devices may be left out.

        Raises:
            DoesNotFit: the policy finds no assignment of finite cost.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """What a scheduling policy may know of a sequence. Never its text."""

    id: int
    owner: str
    arrived_seconds: float
    """Monotonic."""
    num_prompt_tokens: int
    num_computed_tokens: int
    num_emitted_tokens: int
    running: bool
    """Holds KV blocks already."""
    priority: int = 0
    """Of one owner's sequences, higher goes first. What it means between owners is the policy's choice."""
    owner_served_tokens: float = 0.0
    """Tokens that its owner was served of late, against what others were: lower means that more is owed to it."""


class SchedulingPolicy(ABC):
    """Orders sequences. Stateless, pure."""

    name: ClassVar[str]

    @abstractmethod
    def order(self, sequences: Sequence[SequenceView], now_seconds: float) -> Sequence[int]:
        """Return the ids of `sequences` in the order in which they should be served. A permutation."""
