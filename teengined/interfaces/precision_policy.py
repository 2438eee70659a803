"""A precision policy: which precision each part of a model is stored in, so that all of it fits a number of bytes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["PrecisionOption", "PrecisionPart", "PrecisionPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionOption:
    """One way to store a part."""

    precision: str
    size_bytes: int
    error: float
    """What it does to the model's answers when only this part is stored so: nats for each token, at least 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPart:
    """A part of a model that is stored in one precision."""

    name: str
    """A pattern of `--precision`, such as `layers.3.mlp`."""
    options: tuple[PrecisionOption, ...]
    """At least one."""


class PrecisionPolicy(ABC):
    """Chooses one option for each part. Stateless, pure."""

    name: ClassVar[str]

    @abstractmethod
    def choose(self, parts: Sequence[PrecisionPart], budget_bytes: int) -> tuple[PrecisionOption, ...]:
        """Return an option of each part, in order, that together take at most `budget_bytes`.

        Raises:
            DoesNotFit: there is no such choice; says how many bytes the smallest takes.
        """
