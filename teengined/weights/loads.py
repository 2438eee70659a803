"""What passes through the ring: streamed groups, and one passage of such a group."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import torch

from teengined.core.errors import TeengineError
from teengined.core.model import UnitSpec
from teengined.interfaces.driver import CopyEvent

__all__ = ["Load", "LoadState", "StreamedGroup", "StreamedUnit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedUnit:
    """One streamed unit and where it lies in its ring buffer."""

    unit: UnitSpec
    offset_bytes: int
    host_copy: Callable[[], torch.Tensor] | None = None
    """Returns where the unit rests in host memory, once it is loaded; None: it rests on disk."""
    cached: bool = False
    """Read through the page cache, which is where it rests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedGroup:
    """The streamed units of one group."""

    index: int
    """Of the group in the stage."""
    units: tuple[StreamedUnit, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that pass through the ring each time."""
        return sum(streamed.unit.size_bytes for streamed in self.units)


class LoadState(Enum):
    """Where a load stands; the picture is in `ring`."""

    STARTED = auto()
    READ = auto()
    READY = auto()
    FAILED = auto()


class Load:
    """One passage of one group through the ring."""

    __slots__ = ("copied", "device_slot", "error", "group", "host_slot", "sequence", "state")

    def __init__(self, sequence: int, group: StreamedGroup, host_slot: int) -> None:
        self.sequence = sequence
        self.group = group
        self.host_slot = host_slot
        self.device_slot = host_slot
        self.state = LoadState.STARTED
        self.copied: CopyEvent | None = None
        self.error: TeengineError | None = None
