"""Routed experts, put into transformers through its experts interface.

The modules of transformers hold all experts of a layer in one tensor; here each expert is a unit of its own, so only
those that the router asks for are touched. Shape suffixes: T tokens, D model width, A experts asked per token.
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from teengined.interfaces.precision import PrecisionStrategy

__all__ = ["EXPERTS_NAME", "ExpertTable", "register_experts", "run_experts"]

EXPERTS_NAME = "teengine"

Parts = Mapping[str, torch.Tensor]


class ExpertTable:
    """The experts of one layer by index. Filled when the layer's units are bound, read while it runs."""

    def __init__(self, *, is_fixed: bool = False) -> None:
        """Start empty; `bind` fills it before the layer's first use. `is_fixed` as in `StrategyLinear`."""
        self._is_fixed = is_fixed
        self._experts: dict[int, tuple[PrecisionStrategy, Mapping[str, Parts]]] = {}

    def bind(self, expert: int, strategy: PrecisionStrategy, parameters: Mapping[str, Parts]) -> None:
        """Set one expert's stored parameters by short name (`gate_up_proj`, `down_proj_bias`)."""
        self._experts[expert] = (strategy, parameters)

    def project(self, expert: int, name: str, x_TI: torch.Tensor) -> torch.Tensor:
        """Return the product of `x` with the expert's projection `name`, plus its bias where it has one."""
        strategy, parameters = self._experts[expert]
        bias = parameters.get(f"{name}_bias")
        linear = strategy.linear_fixed if self._is_fixed else strategy.linear
        return linear(x_TI, parameters[name], None if bias is None else bias["data"].to(x_TI.dtype))


def register_experts() -> None:
    """Make the function known to transformers."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, run_experts)


def run_experts(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Return (T, D): for each token the weighted sum of its experts' answers. The signature is transformers'.

    Experts run in ascending order and add into the result in the model's dtype, as the eager modules do.
    """
    table: ExpertTable = module.expert_table  # type: ignore[assignment]
    output_TD = torch.zeros_like(hidden_states)
    for expert in torch.unique(top_k_index).tolist():
        rows, choices = torch.where(top_k_index == expert)
        answer = _run_expert(module, table, expert, hidden_states[rows])
        weighted = answer * top_k_weights[rows, choices, None]
        output_TD.index_add_(0, rows, weighted.to(output_TD.dtype))
    return output_TD


def _run_expert(module: nn.Module, table: ExpertTable, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
    if module.has_gate:
        inner = module._apply_gate(table.project(expert, "gate_up_proj", x_TD))  # type: ignore[operator]  # noqa: SLF001
    else:
        inner = module.act_fn(table.project(expert, "up_proj", x_TD))  # type: ignore[operator]
    answer = table.project(expert, "down_proj", inner)
    return module.post_expert_norm(answer) if module.has_post_expert_norm else answer  # type: ignore[operator]
