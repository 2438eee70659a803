"""Blocks of every layer as rows of bytes in host memory, and back.

A layer's part stands at the same place in every row, so that a row can be read before the layer's tensors are cut.
Shape suffixes: N blocks of the pool, S rows, W words of a row or of a block in one tensor, I blocks that are copied.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

__all__ = ["BlockRows", "LateRows"]

Tensors = Mapping[int, Sequence[torch.Tensor]]
"""By layer: its tensors, blocks first on every axis, contiguous."""


class BlockRows:
    """The layout of a row. Copies move words of four bytes where everything is made of them, which is much faster."""

    def __init__(self, block_bytes: Mapping[int, int]) -> None:
        """`block_bytes`: what a block of each layer takes, in order of the layers."""
        self._starts: dict[int, int] = {}
        end = 0
        for layer, num_bytes in block_bytes.items():
            self._starts[layer] = end
            end += num_bytes
        self.row_bytes = end

    def save(self, tensors: Tensors, blocks: Sequence[int], rows_SW: torch.Tensor, slots: Sequence[int]) -> None:
        """Copy blocks into rows (bytes, at least as many as `row_bytes`)."""
        index, target = torch.tensor(blocks), torch.tensor(slots)
        for start, view_NW in self._views(tensors):
            part_IW = view_NW.index_select(0, index.to(view_NW.device)).cpu()
            self._columns(rows_SW, start, part_IW).index_copy_(0, target, part_IW)

    def load(self, tensors: Tensors, blocks: Sequence[int], rows_SW: torch.Tensor, slots: Sequence[int]) -> None:
        """Copy rows into blocks."""
        index, source = torch.tensor(blocks), torch.tensor(slots)
        for start, view_NW in self._views(tensors):
            part_IW = self._columns(rows_SW, start, view_NW).index_select(0, source)
            view_NW.index_copy_(0, index.to(view_NW.device), part_IW.to(view_NW.device))

    def _views(self, tensors: Tensors) -> Iterator[tuple[int, torch.Tensor]]:
        """Return each tensor as words of its blocks (N, W), with the byte of a row where they begin."""
        for layer, of_layer in tensors.items():
            start = self._starts[layer]
            for tensor in of_layer:
                view = tensor.view(tensor.shape[0], -1)
                num_bytes = view.shape[1] * view.itemsize
                fits = start % 4 == 0 and num_bytes % 4 == 0
                yield start, view.view(torch.int32 if fits else torch.uint8)
                start += num_bytes

    @staticmethod
    def _columns(rows_SW: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor's columns of all rows."""
        rows = rows_SW.view(like.dtype)
        first = start // like.itemsize
        return rows[:, first : first + like.shape[1]]


class LateRows:
    """Rows that came before their layers' tensors were cut, as after a restart; each layer takes its part then."""

    def __init__(self, rows: BlockRows) -> None:
        """Hold none."""
        self._rows = rows
        self._by_block: dict[int, torch.Tensor] = {}
        self._ends: dict[int, int] = {}

    def add(self, blocks: Sequence[int], rows_SW: torch.Tensor, slots: Sequence[int]) -> None:
        """Keep a copy of rows, for blocks."""
        for block, slot in zip(blocks, slots, strict=True):
            self._by_block[block] = rows_SW[slot].clone()
            self._ends.pop(block, None)

    def forget(self, blocks: Sequence[int]) -> None:
        """Blocks hold nothing any more."""
        for block in blocks:
            self._by_block.pop(block, None)
            self._ends.pop(block, None)

    def end(self, ends: Mapping[int, int]) -> None:
        """Blocks hold nothing from a token on."""
        self._ends.update({block: end for block, end in ends.items() if block in self._by_block})

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let blocks hold what others do."""
        copied = {target: source for source, target in zip(sources, targets, strict=True)}
        rows = {target: self._by_block[source] for target, source in copied.items() if source in self._by_block}
        self.forget(targets)
        self._by_block.update(rows)

    def give(self, layer: int, tensors: Sequence[torch.Tensor]) -> None:
        """Copy a layer's part to where it belongs."""
        if not self._by_block:
            return
        blocks = list(self._by_block)
        self._rows.load({layer: tensors}, blocks, torch.stack(list(self._by_block.values())), range(len(blocks)))
        for tensor in tensors:
            for block, end in self._ends.items():
                tensor[block, :, end:] = 0

    def clear(self) -> None:
        """Every layer has its part."""
        self._by_block.clear()
        self._ends.clear()
