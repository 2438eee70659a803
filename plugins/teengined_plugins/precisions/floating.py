"""Weights kept as floating-point numbers: `fp32`, `bf16` and `fp16` differ in nothing but the dtype.

Where the activations have another dtype than the weight (fp16 weights on a CPU that crawls at fp16 arithmetic), the
weight is cast a block of rows at a time, so that no second copy of it ever exists.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from teengined.interfaces.precision import PrecisionStrategy

if TYPE_CHECKING:
    import torch

__all__ = ["BLOCK_BYTES", "FloatingPrecision", "linear_by_blocks"]

# A cast block that stays in the second-level cache between its writing and its use.
BLOCK_BYTES = 1 << 20


class FloatingPrecision(PrecisionStrategy):
    """One part, `data`, in one floating dtype."""

    dtype_name: ClassVar[str]
    """Name in torch, such as `bfloat16`."""
    element_bytes: ClassVar[int]

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return elements times the width of one."""
        num_elements = 1
        for length in shape:
            num_elements *= length
        return num_elements * self.element_bytes

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the weight in the dtype, contiguous."""
        import torch

        return {"data": weight.to(getattr(torch, self.dtype_name)).contiguous()}

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return the stored numbers in `dtype`; the same tensor where that is theirs."""
        return parts["data"].to(dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply with the weight as it is, or by cast blocks where the dtypes differ."""
        from torch.nn import functional

        weight_OI = parts["data"]
        if weight_OI.dtype == x_TI.dtype:
            return functional.linear(x_TI, weight_OI, bias_O)
        return linear_by_blocks(x_TI, weight_OI, None, bias_O)


def linear_by_blocks(
    x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor | None", bias_O: "torch.Tensor | None"
) -> "torch.Tensor":
    """Return `x @ (weight * scale).T + bias` with the weight cast to `x`'s dtype a cache-sized block at a time."""
    num_rows = max(1, BLOCK_BYTES // (weight_OI.shape[1] * x_TI.element_size()))
    y_TO = x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])
    for start in range(0, weight_OI.shape[0], num_rows):
        block = weight_OI[start : start + num_rows].to(x_TI.dtype)
        y_TO[:, start : start + num_rows] = x_TI @ block.t()
    if scale_O is not None:
        y_TO *= scale_O.to(y_TO.dtype)
    if bias_O is not None:
        y_TO += bias_O
    return y_TO
