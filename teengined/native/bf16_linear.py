"""The product of bf16 activations with a stored weight, in C: see bf16_linear.c for its order of sums."""

import ctypes
from typing import TYPE_CHECKING

from teengined.native.library import Bf16LinearCall, NativeMatrix, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["FEW_ROWS_CHUNK", "ONE_TILE_CHUNK", "bf16_linear", "has_bf16_linear", "matrix_linear"]

# Columns that are summed before they are added to the rest: of a pass over some 32 rows they stay in the first-level
# cache. Up to four rows wait for memory anyway, which likes to be read in long runs.
ONE_TILE_CHUNK = 2048
FEW_ROWS_CHUNK = 1024
_ONE_TILE = 4


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

    assert weight_OI.is_contiguous()
    scales = None if scale_O is None else scale_O.data_ptr()
    dtype = NativeMatrix.INT8 if weight_OI.dtype == torch.int8 else NativeMatrix.BF16
    matrix = NativeMatrix(weight_OI.data_ptr(), scales, None, None, None, *weight_OI.shape, dtype)
    return matrix_linear(x_TI, matrix, is_fixed=is_fixed)


def matrix_linear(x_TI: "torch.Tensor", matrix: NativeMatrix, *, is_fixed: bool = False) -> "torch.Tensor":
    """Do as `bf16_linear` with a weight of any kind, without its bias. Its memory must live through the call."""
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    num_rows, num_inputs = x_TI.shape
    assert x_TI.stride(1) == 1 and num_inputs == matrix.num_inputs  # noqa: PT018
    y_TO = torch.empty((num_rows, matrix.num_outputs), dtype=torch.bfloat16)
    packed = torch.empty(library.bf16_scratch(num_rows, num_inputs), dtype=torch.uint8)
    call = Bf16LinearCall(
        x_TI.data_ptr(), matrix.data, matrix.scale, matrix.books, matrix.tables, y_TO.data_ptr(), packed.data_ptr(),
        num_rows, num_inputs, matrix.num_outputs, x_TI.stride(0), matrix.dtype, torch.get_num_threads(),
        FEW_ROWS_CHUNK if is_fixed else _chunk(num_rows),
    )  # fmt: skip
    library.run_bf16_linear(ctypes.byref(call))
    return y_TO


def _chunk(num_rows: int) -> int:
    return ONE_TILE_CHUNK if num_rows <= _ONE_TILE else FEW_ROWS_CHUNK
