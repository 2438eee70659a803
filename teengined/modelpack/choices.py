"""What `auto` means at conversion: the precision that keeps what the source has. Torch-free, pure."""

from collections import Counter
from collections.abc import Iterable
from math import prod

from teengined.core.dtypes import STORED_DTYPES
from teengined.core.errors import RequestError
from teengined.interfaces.source import SourceTensor

__all__ = ["AUTO", "resolve_compute_dtype", "resolve_precision", "source_dtypes"]

AUTO = "auto"
_BY_SOURCE = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_COMPUTE_DTYPES = ("fp32", "bf16", "fp16")


def source_dtypes(tensors: Iterable[SourceTensor]) -> Counter[str]:
    """Return how many elements the checkpoint holds in each dtype."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += prod(tensor.shape)
    return counts


def resolve_precision(precision: str, tensors: Iterable[SourceTensor]) -> str:
    """Return the strategy's name for `precision`, which may be `auto`.

    `auto` keeps the dtype that most of the source's elements have. Block formats (GGUF's) are unpacked, and bf16 holds
    what 4 to 8 bits hold.
    """
    if precision != AUTO:
        return precision
    counts = source_dtypes(tensors)
    if any(dtype not in STORED_DTYPES for dtype in counts):
        return "bf16"
    floating = {dtype: count for dtype, count in counts.items() if dtype in _BY_SOURCE}
    return _BY_SOURCE[max(floating, key=lambda dtype: floating[dtype])] if floating else "bf16"


def resolve_compute_dtype(compute_dtype: str, precision: str) -> str:
    """Return the dtype of activations and vectors for a package of `precision`.

    Raises:
        RequestError: an unknown dtype.
    """
    if compute_dtype == AUTO:
        return precision if precision in ("fp32", "fp16") else "bf16"
    if compute_dtype not in _COMPUTE_DTYPES:
        raise RequestError(
            f"{compute_dtype!r:.40} is no compute dtype", hint=f"use one of {', '.join(_COMPUTE_DTYPES)}, or auto"
        )
    return compute_dtype
