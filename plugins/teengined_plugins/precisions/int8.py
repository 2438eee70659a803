"""Weights as int8 with one fp32 scale for each output channel: a quarter of fp32, activations untouched."""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from teengined.core.errors import SourceError
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined.native.dequantise import can_dequantise, dequantise
from teengined.native.int8_linear import MAX_INPUTS
from teengined.native.library import NativeMatrix
from teengined_plugins.precisions.int8_kernels import (
    MAX_DIGIT_INPUTS,
    MIN_DIGIT_INPUTS,
    by_blocks,
    by_digits,
    by_halves,
    by_native,
    by_packed_weight,
    fits_halves,
    fits_native,
    integers_are_exact,
)
from teengined_plugins.precisions.kept_choices import kept_choices
from teengined_plugins.precisions.kernel_choice import Kernel, KernelChoice, kernels_agree, rows_bucket, waiting_for

if TYPE_CHECKING:
    import torch

__all__ = ["Int8Precision"]

_LARGEST = 127
# Weight rows are quantised this many elements at a time, so that conversion holds no second fp32 copy of a matrix.
_ENCODE_BLOCK_ELEMENTS = 1 << 22
# torch's weight-only kernel reads whole vectors, past the end of a row that is not made of them. Beyond this many rows
# it is never ahead, and too slow to be tried.
_PACKED_WIDTH = 64
_MAX_PACKED_ROWS = 64


# All take (T, I), (O, I) and (O,); the first works everywhere.
_KERNELS = {
    "blocks": by_blocks,
    "native": by_native,
    "halves": by_halves,
    "digits": by_digits,
    "packed": by_packed_weight,
}


class Int8Precision(PrecisionStrategy):
    """Stores matrices as `data` (int8, the matrix's shape) and `scale` (fp32, without the last axis); vectors as fp32.

    weight[..., o, i] = data[..., o, i] * scale[..., o], symmetric, with the largest of each channel at 127.
    """

    name = "int8"

    def __init__(self, choice: KernelChoice | None = None) -> None:
        """`choice` remembers which kernel is fastest; None: in this process, and what it measures for later ones."""
        self.choice = choice or KernelChoice(kept=kept_choices())

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return one byte for each element and four for each channel; four for each element of a vector."""
        if len(shape) < 2:
            return 4 * prod(shape)
        return prod(shape) + 4 * prod(shape[:-1])

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Quantise by rounding to nearest.

        Raises:
            SourceError: the weight holds numbers that are not finite.
        """
        import torch

        if weight.ndim < 2:
            return {"data": weight.detach().to(torch.float32).contiguous()}
        rows = weight.detach().reshape(-1, weight.shape[-1])
        data = torch.empty(rows.shape, dtype=torch.int8)
        scale = torch.empty(rows.shape[0], dtype=torch.float32)
        block_rows = max(1, _ENCODE_BLOCK_ELEMENTS // max(1, rows.shape[1]))
        for start in range(0, rows.shape[0], block_rows):
            block = slice(start, start + block_rows)
            data[block], scale[block] = _quantise(rows[block].to(torch.float32))
        return {"data": data.view(weight.shape), "scale": scale.view(weight.shape[:-1])}

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Multiply in fp32, then round once to `dtype`."""
        import torch

        if "scale" not in parts:
            return parts["data"].to(dtype)
        if can_dequantise(parts["data"], dtype) and (matrix := self.native_matrix(parts)) is not None:
            return dequantise(matrix, dtype)
        return (parts["data"].to(torch.float32) * parts["scale"].unsqueeze(-1)).to(dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply with the kernel that is fastest here for these rows, shape, dtype and device."""
        import torch

        weight_OI, scale_O = parts["data"], parts["scale"]
        if x_TI.shape[0] == 0:
            return x_TI.new_empty((0, weight_OI.shape[0]))
        device = x_TI.device
        key = ("int8", rows_bucket(x_TI.shape[0]), weight_OI.shape, x_TI.dtype, device, torch.get_num_threads())
        winner = self.choice.winner(key)
        if winner is not None:  # A model asks a hundred times for each token: nothing is built that is not used.
            y_TO = _KERNELS[winner](x_TI.contiguous(), weight_OI, scale_O)
        else:
            y_TO = self.choice.run(
                key,
                _candidates(x_TI, weight_OI, scale_O),
                agrees=kernels_agree,
                synchronize=waiting_for(device),
            )
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(y_TO.dtype))

    def linear_fixed(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply in integers, whose sums are exact in any order, or as the base class does where that cannot be."""
        weight_OI, scale_O = parts["data"], parts["scale"]
        if x_TI.shape[0] == 0:
            return x_TI.new_empty((0, weight_OI.shape[0]))
        x_TI = x_TI.contiguous()
        if fits_native(x_TI, weight_OI):
            y_TO = by_native(x_TI, weight_OI, scale_O)
        elif _fits_digits(x_TI, weight_OI):
            y_TO = by_digits(x_TI, weight_OI, scale_O)
        else:
            return super().linear_fixed(x_TI, parts, bias_O)
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(y_TO.dtype))

    def native_matrix(self, parts: Mapping[str, "torch.Tensor"]) -> NativeMatrix | None:
        """Return the weight as it lies, with its scales."""
        weight_OI, scale_O = parts["data"], parts["scale"]
        is_plain = weight_OI.device.type == "cpu" and weight_OI.ndim == 2 and weight_OI.is_contiguous()
        if not is_plain or not scale_O.is_contiguous() or weight_OI.shape[1] > MAX_INPUTS:
            return None
        num_outputs, num_inputs = weight_OI.shape
        address, scales = weight_OI.data_ptr(), scale_O.data_ptr()
        return NativeMatrix(address, scales, None, None, None, num_outputs, num_inputs, NativeMatrix.INT8)


def _fits_digits(x_TI: "torch.Tensor", weight_OI: "torch.Tensor") -> bool:
    fits = MIN_DIGIT_INPUTS <= weight_OI.shape[1] <= MAX_DIGIT_INPUTS and weight_OI.shape[0] > 1
    return x_TI.device.type == "cpu" and fits and integers_are_exact()


def _quantise(block_OI: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    amax_O = block_OI.abs().amax(-1)
    if not bool(torch.isfinite(amax_O).all()):
        raise SourceError(
            "a weight matrix holds infinities or NaN, which int8 cannot store",
            hint="check the checkpoint, or convert with `--precision bf16`",
        )
    scale_O = torch.where(amax_O > 0, amax_O / _LARGEST, torch.ones_like(amax_O))
    data_OI = torch.round(block_OI / scale_O.unsqueeze(-1)).clamp_(-_LARGEST, _LARGEST)
    return data_OI.to(torch.int8), scale_O


def _candidates(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> Mapping[str, Kernel]:
    import torch

    x_TI = x_TI.contiguous()
    names = ["blocks"]
    if fits_native(x_TI, weight_OI):
        names.append("native")
    if fits_halves(x_TI, weight_OI):
        names.append("halves")
    if _fits_digits(x_TI, weight_OI):
        names.append("digits")
    # For other dtypes it is a scalar loop on a CPU.
    whole_vectors = weight_OI.shape[1] % _PACKED_WIDTH == 0
    if x_TI.dtype == torch.bfloat16 and x_TI.shape[0] <= _MAX_PACKED_ROWS and whole_vectors:
        names.append("packed")
    return {name: partial(_KERNELS[name], x_TI, weight_OI, scale_O) for name in names}


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the int8 strategy."""
    return [Int8Precision]
