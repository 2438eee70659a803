"""Units as tensors: views into the buffer that a unit was read into. Nothing is copied."""

from collections.abc import Mapping

import torch

from teengined.core.errors import PackageError
from teengined.core.model import TensorSpec, UnitSpec

__all__ = ["UnitTensors", "dtype_of", "unit_views"]

UnitTensors = Mapping[str, Mapping[str, torch.Tensor]]
"""Parameter -> part (`data`, `scale` …) -> tensor, as the unit's precision strategy stored it."""

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def dtype_of(spec: TensorSpec) -> torch.dtype:
    """Return the torch dtype of a stored tensor.

    Raises:
        PackageError: the package names a dtype that this version does not know.
    """
    try:
        return _DTYPES[spec.dtype]
    except KeyError:
        raise PackageError(
            f"tensor {spec.parameter} ({spec.part}) has unknown dtype {spec.dtype!r}", hint="convert the model again"
        ) from None


def unit_views(buffer: torch.Tensor, offset_bytes: int, unit: UnitSpec) -> UnitTensors:
    """Return the tensors of `unit`, which lies at `offset_bytes` of the uint8 `buffer` and lives as long."""
    parameters: dict[str, dict[str, torch.Tensor]] = {}
    for spec in unit.tensors:
        start = offset_bytes + spec.offset_bytes
        view = buffer[start : start + spec.size_bytes].view(dtype_of(spec)).view(spec.shape)
        parameters.setdefault(spec.parameter, {})[spec.part] = view
    return parameters
