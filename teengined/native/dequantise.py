"""Stored weights as plain numbers, in C: see dequantise.c."""

import ctypes
from typing import TYPE_CHECKING

from teengined.native.library import DequantiseCall, NativeMatrix, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["can_dequantise", "dequantise"]

# For less than this, torch's operators take less time than it takes to ask.
_LEAST_NUMBERS = 1 << 16


def can_dequantise(data: "torch.Tensor", dtype: "torch.dtype") -> bool:
    """Say whether `dequantise` is there, makes this dtype, and is worth it for a weight stored as `data`.

    Compiles nothing for what lies on another device.
    """
    import torch

    is_known = data.ndim == 2 and data.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return is_known and data.numel() >= _LEAST_NUMBERS and kernel_library() is not None


def dequantise(matrix: NativeMatrix, dtype: "torch.dtype") -> "torch.Tensor":
    """Return the weight (O, I) in `dtype`: each number times its row's scale in fp32, rounded once.

    Needs `can_dequantise`; `matrix` is int8 or int4.
    """
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    assert matrix.dtype in (NativeMatrix.INT8, NativeMatrix.INT4), f"a matrix of kind {matrix.dtype}"
    weight_OI = torch.empty((matrix.num_outputs, matrix.num_inputs), dtype=dtype)
    call = DequantiseCall(matrix, weight_OI.data_ptr(), int(dtype == torch.bfloat16), torch.get_num_threads())
    library.run_dequantise(ctypes.byref(call))
    return weight_OI
