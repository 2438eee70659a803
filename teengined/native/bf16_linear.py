"""The product of activations with a bf16 weight, in C: see bf16_linear.c for its order of sums."""

import ctypes
from typing import TYPE_CHECKING

from teengined.native.library import Bf16LinearCall, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["bf16_linear", "has_bf16_linear"]


def has_bf16_linear() -> bool:
    """Say whether the kernel is there: a compiler, and a processor with bf16 products (AVX-512 BF16)."""
    library = kernel_library()
    return library is not None and library.has_bf16_linear


def bf16_linear(x_TI: "torch.Tensor", weight_OI: "torch.Tensor") -> "torch.Tensor":
    """Return `x @ weight.T` as (T, O), all bf16 on the CPU, summed in fp32.

    Needs `has_bf16_linear()`, a contiguous weight and contiguous rows of x.
    """
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    assert x_TI.stride(1) == 1 and weight_OI.is_contiguous()  # noqa: PT018
    num_rows, num_inputs = x_TI.shape
    num_outputs = weight_OI.shape[0]
    y_TO = torch.empty((num_rows, num_outputs), dtype=torch.bfloat16)
    call = Bf16LinearCall(
        x_TI.data_ptr(), weight_OI.data_ptr(), None, y_TO.data_ptr(), num_rows, num_inputs, num_outputs, x_TI.stride(0),
        torch.get_num_threads(),
    )  # fmt: skip
    library.run_bf16_linear(ctypes.byref(call))
    return y_TO
