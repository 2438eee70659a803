"""Small numbers in larger words: integers of 2, 4 and 8 bits, and the four-bit float E2M1."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["E2M1_VALUES", "PACKED_BITS", "unpack_e2m1", "unpack_integers"]

PACKED_BITS = (2, 4, 8)
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Sign, two bits of exponent, one of mantissa, by code. Source: OCP Microscaling Formats 1.0, 5.3.3."""


def unpack_integers(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Return (…, W) words as (…, W * bits of a word / bits) numbers in uint8, the lowest bits first."""
    import torch

    octets = words.contiguous().view(torch.uint8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    mask = (1 << bits) - 1
    return ((octets.unsqueeze(-1) >> shifts) & mask).reshape(*words.shape[:-1], -1)


def unpack_e2m1(octets: "torch.Tensor") -> "torch.Tensor":
    """Return (…, W) bytes as (…, 2 W) values in fp32, the low four bits first."""
    import torch

    return torch.tensor(E2M1_VALUES)[unpack_integers(octets.view(torch.uint8), 4).int()]
