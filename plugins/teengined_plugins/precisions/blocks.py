"""Products with a weight that is not stored in the dtype of the computation: a block of its rows at a time.

The whole weight in another dtype would be a second copy, and the budget has no room for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["linear_in_blocks"]

# Elements of one block: 2 MiB in fp32, about a core's second-level cache. On a GPU few large products beat many small.
_CPU_BLOCK_ELEMENTS = 1 << 19
_GPU_BLOCK_ELEMENTS = 1 << 25
_MIN_BLOCK_ROWS = 16


def linear_in_blocks(
    x_TI: "torch.Tensor", weight_OI: "torch.Tensor", read_block: Callable[[int, int], "torch.Tensor"]
) -> "torch.Tensor":
    """Return `x @ weight.T` as (T, O) in `x`'s dtype; `read_block(start, end)` gives weight rows in that dtype."""
    import torch

    num_outputs, num_inputs = weight_OI.shape
    elements = _CPU_BLOCK_ELEMENTS if x_TI.device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    block_rows = max(_MIN_BLOCK_ROWS, elements // max(1, num_inputs))
    if block_rows >= num_outputs:
        return x_TI @ read_block(0, num_outputs).T
    y_TO = torch.empty((x_TI.shape[0], num_outputs), dtype=x_TI.dtype, device=x_TI.device)
    for start in range(0, num_outputs, block_rows):
        end = min(start + block_rows, num_outputs)
        y_TO[:, start:end] = x_TI @ read_block(start, end).T
    return y_TO
