"""The books of int4: 256 sets of 16 signed bytes, of which each group of 16 weights names the one that fits it best.

Book 16 a + b reaches from minus the a-th end to the b-th, of 16 ends between 127 and 13, so that it has the range and
the place of the group's own weights. Within it the 16 values lie a little denser in the middle, where most weights are.
As values are bytes against the row's largest weight, a product with them is one of integers.

The numbers are part of the package format: packages hold places in these books. They never change.

Legend: K books (256), C codes (16).
"""

import functools
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP_INPUTS", "LARGEST", "NUM_CODES", "book_table", "book_values", "unsigned_table"]

GROUP_INPUTS = 16
NUM_CODES = 16
LARGEST = 127
_NUM_ENDS = 16
# From one end to the next, as a share of the largest: the last is at a tenth.
_END_STEP = Fraction(6, 100)
# How much of the spacing is cubic: with ends at u = -1 and 1 a value lies at (1 - c) u + c u^3.
_CUBIC = Fraction(1, 10)


def book_values() -> list[list[int]]:
    """Return the books as lists of numbers from low to high, by exact arithmetic."""
    ends = [_rounded(LARGEST * (1 - place * _END_STEP)) for place in range(_NUM_ENDS)]
    places = [Fraction(2 * code - (NUM_CODES - 1), NUM_CODES - 1) for code in range(NUM_CODES)]
    spaced = [(1 - _CUBIC) * place + _CUBIC * place**3 for place in places]
    return [
        [_rounded(Fraction(high - low, 2) + Fraction(high + low, 2) * place) for place in spaced]
        for low in ends
        for high in ends
    ]


@functools.cache
def book_table(device: "torch.device") -> "torch.Tensor":
    """Return the books as (K, C) of int8 on a device, made once."""
    import torch

    with torch.inference_mode(mode=False):
        return torch.tensor(book_values(), dtype=torch.int8, device=device)


@functools.cache
def unsigned_table() -> "torch.Tensor":
    """Return the books as (K, C) of uint8 in host memory, each value plus 128, as byte products take them."""
    import torch

    with torch.inference_mode(mode=False):
        return (torch.tensor(book_values(), dtype=torch.int16) + 128).to(torch.uint8)


def _rounded(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))
