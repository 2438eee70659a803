"""The kernels that multiply activations with an int4 weight. All leave the activations as they are.

Legend: T rows (tokens), I input features, O output features.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from teengined.native.bf16_linear import has_bf16_linear, matrix_linear
from teengined.native.int4_linear import MAX_INPUTS, has_int4_linear, int4_linear
from teengined.native.library import NativeMatrix
from teengined_plugins.precisions.blocks import linear_in_blocks
from teengined_plugins.precisions.int4_books import unsigned_table
from teengined_plugins.precisions.int4_codes import decode_rows
from teengined_plugins.precisions.int8_kernels import (
    MAX_DIGIT_INPUTS,
    MIN_DIGIT_INPUTS,
    integers_are_exact,
    num_digits_of,
)
from teengined_plugins.precisions.int8_kernels import by_digits as int8_by_digits

if TYPE_CHECKING:
    import torch

__all__ = [
    "Int4Weight",
    "by_blocks",
    "by_digits",
    "by_halves",
    "by_native",
    "fits_digits",
    "fits_halves",
    "fits_native",
]

# Looked up at a time by `by_digits`: 1 MiB of bytes, and four times that of places in the table.
_DIGIT_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A matrix as it is stored: codes (O, I / 2) and books (O, I / 16) of uint8, scale (O,) of fp32."""

    codes: "torch.Tensor"
    books: "torch.Tensor"
    scale_O: "torch.Tensor"

    @property
    def num_outputs(self) -> int:
        """O."""
        return self.codes.shape[0]

    @property
    def num_inputs(self) -> int:
        """I."""
        return 2 * self.codes.shape[1]

    @property
    def is_dense(self) -> bool:
        """Whether all parts lie on the CPU without gaps."""
        return all(
            part.device.type == "cpu" and part.is_contiguous() for part in (self.codes, self.books, self.scale_O)
        )

    def native_matrix(self) -> NativeMatrix:
        """Return what compiled kernels read; points into the parts, which must be dense."""
        addresses = (part.data_ptr() for part in (self.codes, self.scale_O, self.books, unsigned_table()))
        return NativeMatrix(*addresses, None, self.num_outputs, self.num_inputs, NativeMatrix.INT4)

    def bytes_of(self, start: int, end: int) -> "torch.Tensor":
        """Return rows of the weight as int8 (end - start, I), before their scale."""
        return decode_rows(self.codes[start:end], self.books[start:end])


def by_blocks(x_TI: "torch.Tensor", weight: Int4Weight) -> "torch.Tensor":
    """Look a block of weight rows up at a time and multiply. Works for every dtype and device."""
    import torch

    if x_TI.dtype == torch.float16 and x_TI.device.type == "cpu":
        return by_blocks(x_TI.float(), weight).to(x_TI.dtype)
    shape = x_TI.new_empty(()).expand(weight.num_outputs, weight.num_inputs)
    # Integers up to 127 are exact in every dtype, so that the scale is applied once, to sums.
    y_TO = linear_in_blocks(x_TI, shape, lambda start, end: weight.bytes_of(start, end).to(x_TI.dtype))
    return y_TO.mul_(weight.scale_O) if y_TO.dtype == weight.scale_O.dtype else (y_TO * weight.scale_O).to(x_TI.dtype)


def by_native(x_TI: "torch.Tensor", weight: Int4Weight) -> "torch.Tensor":
    """Multiply in one compiled function, which reads each code once. Needs `fits_native`."""
    parts = (weight.codes, weight.books, weight.scale_O)
    return int4_linear(x_TI, parts, unsigned_table(), num_digits=num_digits_of(x_TI.dtype))


def fits_native(x_TI: "torch.Tensor", weight: Int4Weight) -> bool:
    """Say whether `by_native` can multiply these."""
    import torch

    is_plain = x_TI.device.type == "cpu" and x_TI.dtype in (torch.float32, torch.bfloat16)
    return is_plain and weight.is_dense and weight.num_inputs <= MAX_INPUTS and has_int4_linear()


def by_halves(x_TI: "torch.Tensor", weight: Int4Weight) -> "torch.Tensor":
    """Multiply in bf16, which holds every number of a book exactly. Ahead where rows are many. Needs `fits_halves`."""
    return matrix_linear(x_TI, weight.native_matrix())


def fits_halves(x_TI: "torch.Tensor", weight: Int4Weight) -> bool:
    """Say whether `by_halves` can multiply these."""
    import torch

    is_bf16 = x_TI.device.type == "cpu" and x_TI.dtype == torch.bfloat16
    return is_bf16 and weight.is_dense and has_bf16_linear()


def by_digits(x_TI: "torch.Tensor", weight: Int4Weight) -> "torch.Tensor":
    """Look a block of weight rows up at a time and let the integer unit multiply them exactly. Needs `fits_digits`."""
    y_TO = x_TI.new_empty((x_TI.shape[0], weight.num_outputs))
    num_outputs, block_rows = weight.num_outputs, max(2, _DIGIT_BLOCK_ELEMENTS // weight.num_inputs)
    num_blocks = -(-num_outputs // block_rows)
    # Of nearly one size: the library's product takes a single row for something else.
    ends = [num_outputs * block // num_blocks for block in range(num_blocks + 1)]
    for start, end in pairwise(ends):
        y_TO[:, start:end] = int8_by_digits(x_TI, weight.bytes_of(start, end), weight.scale_O[start:end])
    return y_TO


def fits_digits(x_TI: "torch.Tensor", weight: Int4Weight) -> bool:
    """Say whether `by_digits` can multiply these."""
    fits = MIN_DIGIT_INPUTS <= weight.num_inputs <= MAX_DIGIT_INPUTS and weight.num_outputs > 1
    return x_TI.device.type == "cpu" and fits and integers_are_exact()
