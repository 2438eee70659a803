"""Contents below the device that a sequence may begin with."""

from dataclasses import dataclass

from teengined.kvcache.prefix import Node
from teengined.kvcache.spool import Stored

__all__ = ["Restorable", "Swapped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restorable:
    """One block's content that a sequence could have back."""

    stored: Stored
    num_tokens: int
    """From the block's start: all of a node, or as many as the sequence had computed."""
    node: Node | None = None
    """None: it is the sequence's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """What a preempted sequence had on the device and the prefix index did not know."""

    first: int
    """Place of the first block in the sequence's table."""
    stored: list[Stored]
    num_tokens: int
    """Of the sequence, up to the end of the last."""
