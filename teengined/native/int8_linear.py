"""The product of activations with an int8 weight, in C: see int8_linear.c for how and why it is exact."""

import ctypes
from typing import TYPE_CHECKING

from teengined.native.library import Int8LinearCall, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_INPUTS", "has_int8_linear", "int8_linear"]

# Sums of products of two bytes stay within 32 bits up to here.
MAX_INPUTS = 2**31 // (255 * 128)


def has_int8_linear() -> bool:
    """Say whether the kernel is there: a compiler, and a processor with byte products (AVX-512 VNNI)."""
    library = kernel_library()
    return library is not None and library.has_int8_linear


def int8_linear(
    x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor", *, num_digits: int
) -> "torch.Tensor":
    """Return `x @ (weight * scale).T` as (T, O) in `x`'s dtype, fp32 or bf16, on the CPU.

    `num_digits` base-256 digits stand for each activation: 2 lose less than bf16 does, 3 less than fp32 does. Needs
    `has_int8_linear()`, at most `MAX_INPUTS` inputs, and contiguous weight, scale and rows of x.
    """
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    assert x_TI.stride(1) == 1 and weight_OI.is_contiguous() and scale_O.is_contiguous()  # noqa: PT018
    num_rows, num_inputs = x_TI.shape
    num_outputs = weight_OI.shape[0]
    y_TO = torch.empty((num_rows, num_outputs), dtype=x_TI.dtype)
    digits = torch.empty(num_rows * num_digits * library.int8_stride(num_inputs), dtype=torch.uint8)
    units_T = torch.empty(num_rows, dtype=torch.float32)
    call = Int8LinearCall(
        x_TI.data_ptr(), weight_OI.data_ptr(), scale_O.data_ptr(), y_TO.data_ptr(), digits.data_ptr(),
        units_T.data_ptr(), num_rows, num_inputs, num_outputs, x_TI.stride(0), num_digits,
        int(x_TI.dtype == torch.bfloat16), torch.get_num_threads(),
    )  # fmt: skip
    library.run_int8_linear(ctypes.byref(call))
    return y_TO
