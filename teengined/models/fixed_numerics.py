"""Arithmetic of transformers' own modules whose every row is a function of that row alone, bit for bit.

Layers, experts and attention have ways of their own for that; this is for what the modules compute between them. Two
kinds of operation need help. A product with a plain weight (a router) is taken a fixed number of rows at a time. And a
CPU computes exponentials and their like by whole vectors, and what is left over at the end of an array, or at the
border between two threads, by another routine whose last bit differs; so they are given whole vectors, in pieces that
one thread computes. Sums and softmaxes over a row are computed row by row already.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from teengined.interfaces.precision import FIXED_ROWS

__all__ = ["FixedNumerics", "fixed_linear"]

# Elements of two vectors of the widest instruction set, of the narrowest dtype: what one round of a loop takes.
_ROUND_ELEMENTS = 64
# Products of other widths begin their rows at places of unlike alignment, and the library tells those apart.
_WIDTH_ELEMENTS = 16
# torch gives arrays below 32768 elements to one thread.
_PIECE_ELEMENTS = 16384
# Functions of one element that are approximated; what is computed exactly (sums, products, roots) needs no help.
_APPROXIMATED = frozenset(
    {
        "acos", "acosh", "asin", "asinh", "atan", "atanh", "celu", "cos", "cosh", "digamma", "elu", "erf", "erfc",
        "erfinv", "exp", "exp2", "expm1", "gelu", "lgamma", "log", "log10", "log1p", "log2", "log_sigmoid",
        "logit", "mish", "pow", "reciprocal", "rsqrt", "selu", "sigmoid", "silu", "sin", "sinc", "sinh", "softplus",
        "special_expit", "tan", "tanh",
    }
)  # fmt: skip


class FixedNumerics(TorchDispatchMode):
    """While it is entered, torch's operations are replaced as the module's text says."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        given = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "linear":
            return fixed_linear(*args, **given)
        is_one_tensor = not any(isinstance(other, torch.Tensor) for other in args[1:])
        if name.rstrip("_") in _APPROXIMATED and is_one_tensor and args[0].is_floating_point():
            return _by_whole_vectors(args[0], lambda piece: func(piece, *args[1:], **given), in_place=name[-1] == "_")
        return func(*args, **given)


def fixed_linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """Return (..., O) for (..., I), a fixed number of rows at a time, zeros where there are no more."""
    rows_TI = x.reshape(-1, x.shape[-1])
    if rows_TI.shape[0] == 0:
        return functional.linear(x, weight_OI, bias_O)
    rest = -rows_TI.shape[1] % _WIDTH_ELEMENTS
    padded_TI = functional.pad(rows_TI, (0, rest, 0, -rows_TI.shape[0] % FIXED_ROWS))
    padded_OI = functional.pad(weight_OI, (0, rest)) if rest else weight_OI
    blocks = [functional.linear(block, padded_OI, bias_O) for block in padded_TI.split(FIXED_ROWS)]
    return torch.cat(blocks)[: rows_TI.shape[0]].view(*x.shape[:-1], -1)


def _by_whole_vectors(
    x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor], *, in_place: bool
) -> torch.Tensor:
    """Return `function(x)`, computed in pieces in which no element is left over. Other devices have no such ends."""
    if x.device.type != "cpu" or x.numel() == 0:
        return function(x)
    padded = functional.pad(x.reshape(-1), (0, -x.numel() % _ROUND_ELEMENTS))
    pieces = [function(piece.clone()) for piece in padded.split(_PIECE_ELEMENTS)]
    result = torch.cat(pieces)[: x.numel()].view(x.shape)
    return x.copy_(result) if in_place else result
