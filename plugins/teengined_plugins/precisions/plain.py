"""Weights stored as floating-point numbers of one dtype, unquantised: what fp32, bf16 and fp16 share."""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, ClassVar

from teengined.core.errors import SourceError
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.blocks import linear_in_blocks

if TYPE_CHECKING:
    import torch

__all__ = ["PlainPrecision"]


class PlainPrecision(PrecisionStrategy):
    """Stores the weight in one dtype as part `data`; subclasses say which."""

    dtype_name: ClassVar[str]
    """Name in torch, such as `bfloat16`."""
    element_bytes: ClassVar[int]

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the elements' bytes."""
        return prod(shape) * self.element_bytes

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the weight in the dtype.

        Raises:
            SourceError: a finite value does not fit the dtype's range.
        """
        import torch

        stored = weight.detach().to(getattr(torch, self.dtype_name)).contiguous()
        # Reducing by the extremes costs no copy of the weight, as a mask of all its elements would.
        if stored.numel() and not _extremes_finite(stored) and _extremes_finite(weight):
            raise SourceError(
                f"a weight of magnitude {float(weight.abs().max()):.3g} does not fit {self.dtype_name}",
                hint="convert with `--precision bf16`",
            )
        return {"data": stored}

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return the weight in `dtype`; the stored tensor itself where that is its dtype."""
        return parts["data"].to(dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply in `x`'s dtype; a weight stored in another is taken a block at a time."""
        import torch

        weight_OI = parts["data"]
        # fp16 products on a CPU run at a thousandth of its fp32 rate (0.4 GFLOP/s): far behind, conversion included.
        crawls = x_TI.dtype == torch.float16 and x_TI.device.type == "cpu"
        if weight_OI.dtype == x_TI.dtype and not crawls:
            return torch.nn.functional.linear(x_TI, weight_OI, None if bias_O is None else bias_O.to(x_TI.dtype))
        compute_dtype = torch.float32 if crawls else x_TI.dtype
        rows_TI = x_TI.to(compute_dtype)
        y_TO = linear_in_blocks(rows_TI, weight_OI, lambda start, end: weight_OI[start:end].to(compute_dtype))
        if bias_O is not None:
            y_TO += bias_O.to(compute_dtype)
        return y_TO.to(x_TI.dtype)


def _extremes_finite(tensor: "torch.Tensor") -> bool:
    import torch

    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
