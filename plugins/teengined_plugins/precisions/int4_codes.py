"""Weights into int4 codes and back, in stock operators: any device.

Legend: N rows of weights, I inputs, B groups of 16 inputs of a row, K books, V values told apart when a book is chosen.
"""

import functools
from typing import TYPE_CHECKING

from teengined.core.errors import SourceError
from teengined_plugins.precisions.int4_books import GROUP_INPUTS, LARGEST, NUM_CODES, book_table

if TYPE_CHECKING:
    import torch

__all__ = ["decode_rows", "encode_rows"]

# Steps of a weight within one step of a byte when its book is chosen.
_FINENESS = 4
# Added to the error of a book that does not hold the row's largest weight exactly: larger than any sum of squares.
_NEVER = 1e9


def encode_rows(weight_NI: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return codes (N, I / 2), books (N, B) and scale (N,) of fp32 weights, the book of least square error for each.

    The row's largest weight is kept exactly, so that encoding what was decoded finds the same again. Temporaries are
    about 70 bytes for each weight.

    Raises:
        SourceError: the weight holds numbers that are not finite.
    """
    import torch

    amax_N = weight_NI.abs().amax(1)
    if not bool(torch.isfinite(amax_N).all()):
        raise SourceError(
            "a weight matrix holds infinities or NaN, which int4 cannot store",
            hint="check the checkpoint, or convert with `--precision bf16`",
        )
    scale_N = amax_N / LARGEST
    divisor_N1 = torch.where(scale_N > 0, scale_N, 1.0).unsqueeze(1)
    values = (weight_NI / divisor_N1 * _FINENESS).round_().to(torch.int32)
    places = values.clamp_(-LARGEST * _FINENESS, LARGEST * _FINENESS).add_(LARGEST * _FINENESS).view(-1, GROUP_INPUTS)
    errors_VK, nearest_VK = _choices()
    books = torch.nn.functional.embedding_bag(places, errors_VK, mode="sum").argmin(1)
    codes_NI = nearest_VK.view(-1)[places * errors_VK.shape[1] + books.unsqueeze(1)].view(weight_NI.shape)
    return _packed(codes_NI), books.to(torch.uint8).view(len(weight_NI), -1), scale_N


def decode_rows(codes: "torch.Tensor", books_NB: "torch.Tensor") -> "torch.Tensor":
    """Return the weights as bytes (N, I), before their row's scale."""
    import torch

    lanes = codes.unflatten(1, (-1, GROUP_INPUTS))
    codes_NBC = torch.stack((lanes & 15, lanes >> 4), dim=2).view(*books_NB.shape, GROUP_INPUTS)
    places = books_NB.to(torch.int32).unsqueeze(2) * NUM_CODES + codes_NBC
    return book_table(codes.device).view(-1).index_select(0, places.view(-1)).view(len(codes), -1)


def _packed(codes_NI: "torch.Tensor") -> "torch.Tensor":
    pairs = codes_NI.view(len(codes_NI), -1, 2, GROUP_INPUTS)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)


@functools.cache
def _choices() -> "tuple[torch.Tensor, torch.Tensor]":
    """Return, for each value and book, the square of the distance to the nearest entry (fp32), and its code (uint8)."""
    import torch

    with torch.inference_mode(mode=False):
        table_KC = book_table(torch.device("cpu")).float()
        largest = LARGEST * _FINENESS
        values_V = torch.arange(-largest, largest + 1) / _FINENESS
        distance_VKC = (values_V[:, None, None] - table_KC).abs_()
        distance_VK, nearest_VK = distance_VKC.min(2)
        errors_VK = distance_VK.square_()
        for value in (0, -1):
            errors_VK[value] += torch.where(errors_VK[value] > 0, _NEVER, 0.0)
        return errors_VK, nearest_VK.to(torch.uint8)
