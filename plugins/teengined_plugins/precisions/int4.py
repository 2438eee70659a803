"""Weights of four bits in groups of 16, each with the code book that fits it: 4.5 bits a weight."""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined.native.dequantise import can_dequantise, dequantise
from teengined.native.int4_linear import MAX_INPUTS
from teengined.native.library import NativeMatrix
from teengined_plugins.precisions.int4_books import GROUP_INPUTS
from teengined_plugins.precisions.int4_codes import decode_rows, encode_rows
from teengined_plugins.precisions.int4_kernels import (
    Int4Weight,
    by_blocks,
    by_digits,
    by_halves,
    by_native,
    fits_digits,
    fits_halves,
    fits_native,
)
from teengined_plugins.precisions.int8 import Int8Precision
from teengined_plugins.precisions.kept_choices import kept_choices
from teengined_plugins.precisions.kernel_choice import Kernel, KernelChoice, kernels_agree, rows_bucket, waiting_for

if TYPE_CHECKING:
    import torch

__all__ = ["Int4Precision"]

# Inputs of one packed run of codes. Matrices of other widths are stored as int8: real models have none.
_WHOLE_INPUTS = 2 * GROUP_INPUTS
# Weights are encoded this many at a time: the errors of all books are 64 times as large.
_ENCODE_BLOCK_ELEMENTS = 1 << 19
_KERNELS = {"blocks": by_blocks, "native": by_native, "halves": by_halves, "digits": by_digits}


class Int4Precision(PrecisionStrategy):
    """Stores `data` (uint8, two codes a byte), `book` (uint8, one for each 16 inputs) and `scale` (fp32, one a row).

    weight[..., o, i] = BOOKS[book[..., o, i // 16], code[..., o, i]] * scale[..., o]. A byte holds code i in its low
    half and code i + 16 in its high one, within each 32 inputs. Matrices whose width is no multiple of 32 are stored as
    int8 stores them, vectors as fp32.
    """

    name = "int4"
    max_storing_error = 0.1
    ends_precision = "int8"

    def __init__(self, choice: KernelChoice | None = None) -> None:
        """`choice` remembers which kernel is fastest; None: in this process, and what it measures for later ones."""
        self.choice = choice or KernelChoice(kept=kept_choices())
        self._int8 = Int8Precision(self.choice)

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return half a byte for each element, one for each group and four for each row."""
        if not _is_packed(shape):
            return self._int8.stored_bytes(shape)
        return prod(shape) // 2 + prod(shape) // GROUP_INPUTS + 4 * prod(shape[:-1])

    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Choose the book of least square error for each group, and the nearest code in it for each weight.

        Raises:
            SourceError: the weight holds numbers that are not finite.
        """
        import torch

        if not _is_packed(weight.shape):
            return self._int8.encode(weight)
        num_inputs, outer = weight.shape[-1], weight.shape[:-1]
        rows = weight.detach().reshape(-1, num_inputs)
        blocks = [
            encode_rows(block.to(torch.float32).contiguous())
            for block in rows.split(max(1, _ENCODE_BLOCK_ELEMENTS // num_inputs))
        ]
        data, book, scale = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return {"data": data.view(*outer, -1), "book": book.view(*outer, -1), "scale": scale.view(outer)}

    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Look the codes up, multiply in fp32, then round once to `dtype`."""
        import torch

        if "book" not in parts:
            return self._int8.decode(parts, dtype)
        data, book, scale = parts["data"], parts["book"], parts["scale"]
        if can_dequantise(data, dtype) and (matrix := self.native_matrix(parts)) is not None:
            return dequantise(matrix, dtype)
        weight_NI = decode_rows(data.reshape(-1, data.shape[-1]), book.reshape(-1, book.shape[-1]))
        return (weight_NI.view(*scale.shape, -1).to(torch.float32) * scale.unsqueeze(-1)).to(dtype)

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply with the kernel that is fastest here for these rows, shape, dtype and device."""
        import torch

        if "book" not in parts:
            return self._int8.linear(x_TI, parts, bias_O)
        weight = Int4Weight(parts["data"], parts["book"], parts["scale"])
        if x_TI.shape[0] == 0:
            return x_TI.new_empty((0, weight.num_outputs))
        device = x_TI.device
        key = ("int4", rows_bucket(x_TI.shape[0]), weight.codes.shape, x_TI.dtype, device, torch.get_num_threads())
        winner = self.choice.winner(key)
        if winner is not None:
            y_TO = _KERNELS[winner](x_TI.contiguous(), weight)
        else:
            y_TO = self.choice.run(
                key, _candidates(x_TI.contiguous(), weight), agrees=kernels_agree, synchronize=waiting_for(device)
            )
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(y_TO.dtype))

    def linear_fixed(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply in integers, whose sums are exact in any order, or as the base class does where that cannot be."""
        if "book" not in parts:
            return self._int8.linear_fixed(x_TI, parts, bias_O)
        weight = Int4Weight(parts["data"], parts["book"], parts["scale"])
        if x_TI.shape[0] == 0:
            return x_TI.new_empty((0, weight.num_outputs))
        x_TI = x_TI.contiguous()
        if fits_native(x_TI, weight):
            y_TO = by_native(x_TI, weight)
        elif fits_digits(x_TI, weight):
            y_TO = by_digits(x_TI, weight)
        else:
            return super().linear_fixed(x_TI, parts, bias_O)
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(y_TO.dtype))

    def native_matrix(self, parts: Mapping[str, "torch.Tensor"]) -> NativeMatrix | None:
        """Return the codes as they lie, with their books and scales."""
        if "book" not in parts:
            return self._int8.native_matrix(parts)
        if parts["data"].ndim != 2:
            return None
        weight = Int4Weight(parts["data"], parts["book"], parts["scale"])
        return weight.native_matrix() if weight.is_dense and weight.num_inputs <= MAX_INPUTS else None


def _is_packed(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[-1] > 0 and shape[-1] % _WHOLE_INPUTS == 0


def _candidates(x_TI: "torch.Tensor", weight: Int4Weight) -> Mapping[str, Kernel]:
    names = ["blocks"]
    if fits_native(x_TI, weight):
        names.append("native")
    if fits_halves(x_TI, weight):
        names.append("halves")
    if fits_digits(x_TI, weight):
        names.append("digits")
    return {name: partial(_KERNELS[name], x_TI, weight) for name in names}


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the int4 strategy."""
    return [Int4Precision]
