"""Weights as IEEE single precision: the reference, at four bytes a parameter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.plain import decode_plain, encode_plain, linear_plain, stored_bytes_plain

if TYPE_CHECKING:
    import torch

__all__ = ["Fp32Precision"]


class Fp32Precision(PrecisionStrategy):
    """Stores fp32."""

    name = "fp32"

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return four bytes for each element."""
        return stored_bytes_plain(shape, 4)

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the weight in fp32; SourceError where a finite value does not fit its range."""
        import torch

        return encode_plain(weight, torch.float32)

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return the weight in `dtype`; the stored tensor itself where that is fp32."""
        return decode_plain(parts, dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply in `x`'s dtype; other than fp32 takes the weight a block at a time."""
        return linear_plain(x_TI, parts, bias_O)


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the fp32 strategy."""
    return [Fp32Precision]
