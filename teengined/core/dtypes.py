"""Element types of stored tensors, by their names in safetensors."""

from collections.abc import Mapping

__all__ = ["DTYPE_BYTES", "STORED_DTYPES"]

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
"""Bytes of one element."""

STORED_DTYPES = frozenset(DTYPE_BYTES) - {"F8_E8M0"}
"""Those that a package's units may have. The exponents of block formats are spent when a checkpoint is converted."""
