"""What decides which expert gives way when another needs its slot.

Pure: no clock, no randomness. A policy is told of every access and of what is held; asked for a victim, it names the
held key that it would miss least.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable
from typing import ClassVar

__all__ = ["EvictionPolicy", "ExpertKey"]

ExpertKey = tuple[int, int]
"""(layer, expert)."""


class EvictionPolicy(ABC):
    """Knows what is held and what was asked for. One thread."""

    name: ClassVar[str]

    def __init__(self, capacity: int, *, half_life: float) -> None:
        """Hold nothing yet, and at most `capacity` keys ever; `half_life` is in requests."""
        self.capacity = capacity
        self.half_life = half_life

    @abstractmethod
    def touch(self, key: ExpertKey) -> None:
        """Note an access, whether the key is held or not."""

    @abstractmethod
    def add(self, key: ExpertKey) -> None:
        """Note that a key is held from now on; there is room for it."""

    @abstractmethod
    def remove(self, key: ExpertKey) -> None:
        """Note that a key is held no more."""

    @abstractmethod
    def victim(self, protected: Container[ExpertKey]) -> ExpertKey | None:
        """Return the held key to give up, none of `protected`; None where only those are held."""

    @abstractmethod
    def holding(self, held: Iterable[ExpertKey]) -> "EvictionPolicy":
        """Return a policy that knows what this one knows, and holds other keys."""

    def next_request(self) -> None:
        """Let time pass: a layer asks for its experts. Nothing, where a policy knows no time."""
        return
