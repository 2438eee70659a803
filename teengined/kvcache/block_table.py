"""The blocks of one sequence, in the order of its tokens."""

from collections import deque
from dataclasses import dataclass, field

from teengined.kvcache.restorable import Restorable, Swapped

__all__ = ["BlockTable", "num_blocks_for"]


def num_blocks_for(num_tokens: int, block_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // block_tokens)


@dataclass(slots=True)
class BlockTable:
    """Block `index` holds the tokens at positions `index * block_tokens` and after."""

    block_tokens: int
    block_ids: list[int] = field(default_factory=list[int])
    nodes: list[int] = field(default_factory=list[int])
    """Serial numbers in the prefix index of the first full blocks, as many as are known there."""
    digests: list[bytes] = field(default_factory=list[bytes])
    """Chained digests of full blocks, as far as they were asked for. They outlive the blocks: tokens do not change."""
    pending: deque[Restorable] = field(default_factory=deque[Restorable])
    """What is to come back from below the device, after the blocks that are there."""
    swapped: Swapped | None = None
    """What the sequence alone had when it was preempted; until it runs again."""

    def num_missing(self, num_tokens: int) -> int:
        """Return how many blocks must be added before `num_tokens` tokens fit."""
        return max(0, num_blocks_for(num_tokens, self.block_tokens) - len(self.block_ids))

    def num_fitting(self, num_more: int) -> int:
        """Return how many tokens fit with `num_more` blocks more."""
        return (len(self.block_ids) + num_more) * self.block_tokens
