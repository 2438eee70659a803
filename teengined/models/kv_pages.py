"""Has the system give a pool's pages little by little, ahead of the blocks that need them.

Memory that was never touched is given when it is first written to, zeroed, a huge page at a time where there are such.
All tensors of a pool have blocks of about the same size, so all of them come to the end of a page with the same block:
two pages for each layer at once, which held up every sequence of a step for 0.15 s. So each tensor is touched so many
blocks ahead that no two come to a page's end together.

Shape suffix: N blocks.
"""

from collections.abc import Sequence

import torch

__all__ = ["PagesAhead", "distances"]

# Pages larger than this are rare, and smaller ones are given so quickly that nobody waits for them.
_PAGE_BYTES = 2 << 20


def distances(block_bytes: Sequence[int], page_bytes: int = _PAGE_BYTES) -> list[int]:
    """Return how many blocks ahead each tensor is touched: spread evenly over the blocks of one of its pages. Pure.

    At least one, for a block may reach over the end of a page.

    Args:
        block_bytes: What a block takes in each tensor.
        page_bytes: What the system gives at once.
    """
    num_tensors = len(block_bytes)
    return [1 + place * max(1, page_bytes // size) // num_tensors for place, size in enumerate(block_bytes)]


class PagesAhead:
    """For one pool on a CPU, whose blocks are taken for the first time in about the order of their numbers."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """`tensors` have blocks first on every axis."""
        self._views = [tensor.view(tensor.shape[0], -1) for tensor in tensors]
        self._distances = distances([view.shape[1] * view.itemsize for view in self._views])
        self._reached = -1

    def reach(self, block: int) -> None:
        """Touch what lies ahead of a block that is about to be used. What is there stays as it is."""
        if block <= self._reached:
            return
        before, self._reached = self._reached, block
        for view_N, distance in zip(self._views, self._distances, strict=True):
            first = before + 1 + distance if before >= 0 else 0
            view_N[first : block + 1 + distance, :1].mul_(1)
