"""torch's element types by their names in safetensors. Torch-free until they are asked for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["torch_dtype"]


def torch_dtype(name: str) -> "torch.dtype":
    """Return torch's type for a name of `teengined.core.dtypes`."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }[name]
