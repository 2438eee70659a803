"""Guesses which experts a layer will ask for, before its attention has run.

A layer adds to what comes in: what its router will see is its input, plus what attention adds, through a norm. So the
layer's own norm and router are run on the input as it is. Which module is that norm is seen in the first pass, since
each architecture has its own name for it. A guess only says what to read early; no result depends on it.

Shape suffixes: T tokens, D model width, K experts asked per token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from teengined.models.experts import ExpertTable, Routed

__all__ = ["RouterGuess"]


class RouterGuess:
    """Guesses for one layer. Its weights are bound from outside before each call."""

    def __init__(self, layer: nn.Module) -> None:
        """Watch the layer's first pass, if it routes to experts."""
        self._block, self._table = _routing_block(layer)
        self._norm: nn.Module | None = None
        self._seen: list[tuple[nn.Module, Any]] = []
        self._hooks: list[Any] = []
        if self._block is not None:
            others = [child for child in layer.children() if child is not self._block]
            self._hooks = [child.register_forward_hook(self._see) for child in others]
            self._hooks.append(self._block.register_forward_pre_hook(self._find_norm))

    def experts(self, hidden_1TD: torch.Tensor) -> Sequence[int]:
        """Return experts that the layer will ask for if attention changes little, those of most weight first.

        Empty where it is not known how the layer comes to its experts.
        """
        block, norm, table = self._block, self._norm, self._table
        if block is None or norm is None or table is None:
            return ()
        try:
            with table.only_routing():
                block(norm(hidden_1TD))
        except Routed as routed:
            return _by_weight(routed)
        return ()

    def rows_asking(self, expert: int) -> Sequence[int]:
        """Return the rows of the latest run that ask for an expert."""
        routed_TK = None if self._table is None else self._table.routed_TK
        return () if routed_TK is None else (routed_TK == expert).any(dim=-1).nonzero().flatten().tolist()

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._seen.append((module, output))

    def _find_norm(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Look whose result the block gets, and watch no longer."""
        self._norm = next((module for module, output in self._seen if inputs and output is inputs[0]), None)
        self._seen = []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _routing_block(layer: nn.Module) -> tuple[nn.Module | None, ExpertTable | None]:
    """Return the layer's part that holds its experts, and their table."""
    for child in layer.children():
        for module in child.modules():
            table = getattr(module, "expert_table", None)
            if isinstance(table, ExpertTable) and module is not child:
                return child, table
    return None, None


def _by_weight(routed: Routed) -> Sequence[int]:
    weights: dict[int, float] = {}
    choices = zip(routed.index_TK.flatten().tolist(), routed.weights_TK.flatten().tolist(), strict=True)
    for expert, weight in choices:
        weights[expert] = weights.get(expert, 0.0) + weight
    return sorted(weights, key=lambda expert: -weights[expert])
