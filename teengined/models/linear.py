"""Modules that stand where transformers had its own weights: products through a precision strategy, rows by lookup."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from teengined.interfaces.precision import PrecisionStrategy

__all__ = ["LookupEmbedding", "StrategyLinear", "serve_embedding"]

Parts = Mapping[str, torch.Tensor]


class StrategyLinear(nn.Module):
    """A linear layer whose weight is bound from outside before each use and never owned.

    Stands for `nn.Linear` and for transformers' `Conv1D` alike, since packages store both as (O, I).
    """

    def __init__(self, in_features: int, out_features: int, *, is_fixed: bool = False) -> None:
        """Start unbound: `strategy` and `parts` are set by the binding, `bias_O` too where there is one.

        Another weight is another mapping of parts: what they hold is never replaced, so that who remembers something of
        a weight need only look whether the mapping is the same.

        `is_fixed` asks for rows that do not depend on one another, at the price of speed.
        """
        super().__init__()
        self.is_fixed = is_fixed
        self.in_features = in_features
        self.out_features = out_features
        self.strategy: PrecisionStrategy | None = None
        self.parts: Parts = {}
        self.bias_O: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., O) for (..., I) in `x`'s dtype."""
        assert self.strategy is not None, "a linear layer ran before its weights were bound"
        rows_TI = x.reshape(-1, x.shape[-1])
        linear = self.strategy.linear_fixed if self.is_fixed else self.strategy.linear
        return linear(rows_TI, self.parts, self.bias_O).view(*x.shape[:-1], -1)


class LookupEmbedding:
    """Runs an embedding module on just the rows that its tokens need.

    The module's own forward is kept (some scale what they look up): its weight is replaced for the length of a call by
    the distinct rows, and the ids by their places among them.
    """

    def __init__(self, module: nn.Embedding, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`rows(ids)` returns (len(ids), D) in the compute dtype."""
        self._module = module
        self._rows = rows
        self._original = module.forward
        module.padding_idx = None  # names a row of the whole table, which is not here

    def __call__(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that nn.Embedding uses
        """Return (..., D) for token or position ids (...)."""
        distinct, places = torch.unique(input, return_inverse=True)
        self._module._parameters["weight"] = self._rows(distinct)  # type: ignore[assignment]  # noqa: SLF001
        return self._original(places)


def serve_embedding(module: nn.Embedding, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Make `module` look its rows up through `rows`."""
    module.forward = LookupEmbedding(module, rows)  # type: ignore[method-assign]
