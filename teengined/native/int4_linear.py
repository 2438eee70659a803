"""The product of activations with a weight of four bits, in C: see int4_linear.c for its order and exactness."""

import ctypes
from typing import TYPE_CHECKING

from teengined.native.library import Int4LinearCall, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_INPUTS", "has_int4_linear", "int4_linear"]

# Sums of products of two bytes stay within 32 bits up to here.
MAX_INPUTS = 2**31 // (255 * 128)
_GROUP_INPUTS = 16


def has_int4_linear() -> bool:
    """Say whether the kernel is there: a compiler. It is fast with byte products (AVX-512 VNNI), and right without."""
    library = kernel_library()
    return library is not None and library.has_int4_linear


def int4_linear(
    x_TI: "torch.Tensor",
    weight: "tuple[torch.Tensor, torch.Tensor, torch.Tensor]",
    tables: "torch.Tensor",
    *,
    num_digits: int,
) -> "torch.Tensor":
    """Return `x @ weight.T` as (T, O) in `x`'s dtype, fp32 or bf16, on the CPU.

    `weight` is codes (O, I / 2) and books (O, I / 16), both uint8, and scale (O,) in fp32; `tables` is (256, 16) of
    uint8. Weight o, i is (tables[book, code] - 128) * scale[o]. Needs `has_int4_linear()`, inputs in whole groups of
    32 and at most `MAX_INPUTS` of them, and everything contiguous but the rows of x.
    """
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    codes, books, scale_O = weight
    num_rows, num_inputs = x_TI.shape
    num_outputs = codes.shape[0]
    assert x_TI.stride(1) == 1 and all(part.is_contiguous() for part in weight)  # noqa: PT018
    assert codes.shape[1] * 2 == books.shape[1] * _GROUP_INPUTS == num_inputs
    y_TO = torch.empty((num_rows, num_outputs), dtype=x_TI.dtype)
    digits = torch.empty(num_rows * num_digits * library.int4_stride(num_inputs), dtype=torch.uint8)
    units_T = torch.empty(num_rows, dtype=torch.float32)
    call = Int4LinearCall(
        x_TI.data_ptr(), codes.data_ptr(), books.data_ptr(), tables.data_ptr(), scale_O.data_ptr(),
        y_TO.data_ptr(), digits.data_ptr(), units_T.data_ptr(), num_rows, num_inputs, num_outputs, x_TI.stride(0),
        num_digits, int(x_TI.dtype == torch.bfloat16), torch.get_num_threads(),
    )  # fmt: skip
    library.run_int4_linear(ctypes.byref(call))
    return y_TO
