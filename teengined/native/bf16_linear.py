"""The product of bf16 activations with a bf16 or int8 weight, in C: see bf16_linear.c for its order of sums."""

import ctypes
from typing import TYPE_CHECKING

from teengined.native.library import Bf16LinearCall, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["FEW_ROWS_CHUNK", "MANY_ROWS_CHUNK", "bf16_linear", "has_bf16_linear"]

# Columns that are summed before they are added to the rest. The short chunk of up to about 32 rows stays in the
# first-level cache; where there are more it cannot, and a long one has fewer ends to add up.
FEW_ROWS_CHUNK = 256
MANY_ROWS_CHUNK = 1024
_MANY_ROWS = 33
# The numbers of kernels.h.
_BF16, _INT8 = 1, 2


def has_bf16_linear() -> bool:
    """Say whether the kernel is there: a compiler, and a processor with bf16 products (AVX-512 BF16)."""
    library = kernel_library()
    return library is not None and library.has_bf16_linear


def bf16_linear(
    x_TI: "torch.Tensor",
    weight_OI: "torch.Tensor",
    scale_O: "torch.Tensor | None" = None,
    *,
    is_fixed: bool = False,
) -> "torch.Tensor":
    """Return `x @ (weight * scale).T` as (T, O) in bf16, like `x`, on the CPU, summed in fp32.

    Args:
        x_TI: Activations with contiguous rows.
        weight_OI: Contiguous, bf16 or int8.
        scale_O: Contiguous fp32, or None for ones.
        is_fixed: Add up in the same order however many rows there are.
    """
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    assert x_TI.stride(1) == 1 and weight_OI.is_contiguous()  # noqa: PT018
    num_rows, num_inputs = x_TI.shape
    num_outputs = weight_OI.shape[0]
    y_TO = torch.empty((num_rows, num_outputs), dtype=torch.bfloat16)
    packed = torch.empty(library.bf16_scratch(num_rows, num_inputs), dtype=torch.uint8)
    call = Bf16LinearCall(
        x_TI.data_ptr(), weight_OI.data_ptr(), None if scale_O is None else scale_O.data_ptr(), y_TO.data_ptr(),
        packed.data_ptr(), num_rows, num_inputs, num_outputs, x_TI.stride(0),
        _INT8 if weight_OI.dtype == torch.int8 else _BF16, torch.get_num_threads(),
        FEW_ROWS_CHUNK if is_fixed or num_rows < _MANY_ROWS else MANY_ROWS_CHUNK,
    )  # fmt: skip
    library.run_bf16_linear(ctypes.byref(call))
    return y_TO
