"""Weights in eight bits, symmetric, one fp32 scale for each output channel; vectors stay as they are.

data[o, i] = round(weight[o, i] / scale[o]),   scale[o] = max |weight[o, :]| / 127
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.floating import linear_by_blocks
from teengined_plugins.precisions.kernel_choice import KernelChoice

if TYPE_CHECKING:
    import torch

__all__ = ["Int8", "teengine_register_precisions"]

_LEVELS = 127


class Int8(PrecisionStrategy):
    """Parts `data` (I8) and `scale` (fp32, one for each output row)."""

    name = "int8"

    def __init__(self) -> None:
        """Know the kernels; which one is used is measured at the first product of each shape."""
        self._choice = KernelChoice({"blocks": _by_blocks, "packed": _packed})

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return one byte an element and four a row; vectors are counted as fp32."""
        if len(shape) == 1:
            return shape[0] * 4
        return shape[0] * shape[1] + shape[0] * 4

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return `data` and `scale`; a row of zeros gets scale 1."""
        import torch

        if weight.ndim == 1:
            return {"data": weight.contiguous()}
        weight_OI = weight.float()
        scale_O = weight_OI.abs().amax(1) / _LEVELS
        scale_O = torch.where(scale_O == 0, torch.ones_like(scale_O), scale_O)
        data_OI = torch.round(weight_OI / scale_O[:, None]).clamp(-_LEVELS, _LEVELS).to(torch.int8)
        return {"data": data_OI.contiguous(), "scale": scale_O}

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return data times scale, multiplied in fp32."""
        if "scale" not in parts:
            return parts["data"].to(dtype)
        return (parts["data"].float() * parts["scale"][:, None]).to(dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply with the eight-bit weight through the kernel that measured fastest for this shape."""
        return self._choice.run(x_TI, parts, bias_O, names=_candidates(x_TI))


def _candidates(x_TI: "torch.Tensor") -> tuple[str, ...]:
    """Return the kernels that can be best.

    The packed one has fast code for bf16 on a CPU only, and reads past its inputs unless their width is whole vectors.
    """
    import torch

    num_rows, width = x_TI.shape
    fits = x_TI.device.type == "cpu" and x_TI.dtype == torch.bfloat16 and num_rows <= 64 and width % 64 == 0
    return ("packed", "blocks") if fits else ("blocks",)


def _packed(x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None") -> "torch.Tensor":
    import torch

    y_TO = torch.ops.aten._weight_int8pack_mm(x_TI, parts["data"], parts["scale"].to(x_TI.dtype))  # noqa: SLF001
    return y_TO if bias_O is None else y_TO + bias_O


def _by_blocks(
    x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
) -> "torch.Tensor":
    return linear_by_blocks(x_TI, parts["data"], parts["scale"], bias_O)


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the strategy."""
    return [Int8]
