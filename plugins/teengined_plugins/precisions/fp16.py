"""Weights as IEEE half precision: eleven bits of precision, magnitudes up to 65504."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.plain import decode_plain, encode_plain, linear_plain, stored_bytes_plain

if TYPE_CHECKING:
    import torch

__all__ = ["Fp16Precision"]


class Fp16Precision(PrecisionStrategy):
    """Stores fp16."""

    name = "fp16"

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return two bytes for each element."""
        return stored_bytes_plain(shape, 2)

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the weight in fp16; SourceError where a finite value does not fit its range."""
        import torch

        return encode_plain(weight, torch.float16)

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return the weight in `dtype`; the stored tensor itself where that is fp16."""
        return decode_plain(parts, dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply in `x`'s dtype, on a CPU in fp32 blocks: its fp16 products crawl."""
        return linear_plain(x_TI, parts, bias_O)


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the fp16 strategy."""
    return [Fp16Precision]
