"""Weights as bfloat16: the range of fp32 with eight bits of precision, and what most models were trained in."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.plain import decode_plain, encode_plain, linear_plain, stored_bytes_plain

if TYPE_CHECKING:
    import torch

__all__ = ["Bf16Precision"]


class Bf16Precision(PrecisionStrategy):
    """Stores bf16."""

    name = "bf16"

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return two bytes for each element."""
        return stored_bytes_plain(shape, 2)

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the weight in bf16; SourceError where a finite value does not fit its range."""
        import torch

        return encode_plain(weight, torch.bfloat16)

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return the weight in `dtype`; the stored tensor itself where that is bf16."""
        return decode_plain(parts, dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply in `x`'s dtype; other than bf16 takes the weight a block at a time."""
        return linear_plain(x_TI, parts, bias_O)


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the bf16 strategy."""
    return [Bf16Precision]
