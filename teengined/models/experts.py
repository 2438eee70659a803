"""Routed experts, put into transformers through its experts interface.

The modules of transformers hold all experts of a layer in one tensor; here each expert is a unit of its own, so only
those that the router asks for are touched: they are bound with their layer, or fetched when they are asked for.
Shape suffixes: T tokens, D model width, K experts asked per token, R rows of one expert.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from teengined.interfaces.precision import PrecisionStrategy

__all__ = ["EXPERTS_NAME", "BoundExpert", "ExpertTable", "FetchExperts", "Routed", "register_experts", "run_experts"]

EXPERTS_NAME = "teengine"

# Answers that may be kept until all experts of a step have given theirs, in rows of the model's width. Enough for every
# decode step, and within the rows that the planner counts for an MLP.
_MOST_KEPT_ROWS = 1024

Parts = Mapping[str, torch.Tensor]

FetchExperts = Callable[[Sequence[int], bool], Generator[tuple[int, "BoundExpert"]]]
"""(experts, ascending; whether they must come in that order) -> each with its weights, valid until the next."""


@dataclass(frozen=True, slots=True)
class BoundExpert:
    """One expert's stored parameters by short name (`gate_up_proj`, `down_proj_bias`)."""

    strategy: PrecisionStrategy
    parameters: Mapping[str, Parts]

    def project(self, name: str, x_RI: torch.Tensor, *, is_fixed: bool) -> torch.Tensor:
        """Return the product of `x` with the projection `name`, plus its bias where it has one."""
        bias = self.parameters.get(f"{name}_bias")
        linear = self.strategy.linear_fixed if is_fixed else self.strategy.linear
        return linear(x_RI, self.parameters[name], None if bias is None else bias["data"].to(x_RI.dtype))


class Routed(Exception):
    """Ends the run of a module when it has said where its tokens go, which is all that was wanted of it."""

    def __init__(self, index_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        super().__init__()
        self.index_TK = index_TK
        self.weights_TK = weights_TK


class ExpertTable:
    """The experts of one layer by index."""

    def __init__(self, *, is_fixed: bool = False) -> None:
        """Start empty; `bind` fills it, or `fetch_with` says who does. `is_fixed` as in `StrategyLinear`."""
        self.is_fixed = is_fixed
        self.is_only_routing = False
        self.routed_TK: torch.Tensor | None = None
        """Where the tokens of the latest run go."""
        self._experts: dict[int, BoundExpert] = {}
        self._fetch: FetchExperts | None = None

    def bind(self, expert: int, strategy: PrecisionStrategy, parameters: Mapping[str, Parts]) -> None:
        """Set one expert's stored parameters, which stay until the next binding."""
        self._experts[expert] = BoundExpert(strategy, parameters)

    def fetch_with(self, fetch: FetchExperts) -> None:
        """Have the experts come through `fetch` from now on."""
        self._fetch = fetch

    @property
    def is_fetched(self) -> bool:
        """Whether experts come when they are asked for, so that the order in which they do matters."""
        return self._fetch is not None

    @contextlib.contextmanager
    def only_routing(self) -> Generator[None]:
        """Have the module raise `Routed` instead of running experts, until the block ends."""
        self.is_only_routing = True
        try:
            yield
        finally:
            self.is_only_routing = False

    def each(self, experts: Sequence[int], *, in_order: bool) -> Generator[tuple[int, BoundExpert]]:
        """Yield the experts, ascending where `in_order`; one at a time is valid. To be closed by who asks."""
        if self._fetch is not None:
            return self._fetch(experts, in_order)
        return self._bound(experts)

    def _bound(self, experts: Sequence[int]) -> Generator[tuple[int, BoundExpert]]:
        for expert in experts:
            yield expert, self._experts[expert]


@dataclass(frozen=True, slots=True)
class _Routing:
    """Who goes where."""

    experts: list[int]
    """Those that any token goes to, ascending."""
    choices_R: dict[int, torch.Tensor]
    """Expert -> indexes into the flattened (T, K) choices, ascending."""
    rank_TK: torch.Tensor
    """Of each choice: how many of its token's experts are smaller."""


class _Sum:
    """Adds weighted answers into each token's row in ascending order of experts, in the model's dtype.

    The eager modules of transformers do so, and it is what makes a result the same whoever comes first. Where answers
    may come in any order they are kept, each in its place, until all are there.
    """

    def __init__(self, like_TD: torch.Tensor, routing: _Routing, *, keeps: bool) -> None:
        self._routing = routing
        self._num_choices = routing.rank_TK.shape[1]
        rows = (like_TD.shape[0], self._num_choices, like_TD.shape[1])
        self._kept_TKD = like_TD.new_zeros(rows) if keeps else None
        self._sum_TD = torch.zeros_like(like_TD)

    def add(self, choices_R: torch.Tensor, weighted_RD: torch.Tensor) -> None:
        """Take one expert's answers."""
        rows_R = choices_R.div(self._num_choices, rounding_mode="floor")
        weighted_RD = weighted_RD.to(self._sum_TD.dtype)
        if self._kept_TKD is None:
            self._sum_TD.index_add_(0, rows_R, weighted_RD)
        else:
            self._kept_TKD[rows_R, self._routing.rank_TK.flatten()[choices_R]] = weighted_RD

    def result(self) -> torch.Tensor:
        """Return the sums (T, D)."""
        if self._kept_TKD is not None:
            for place in range(self._num_choices):
                self._sum_TD += self._kept_TKD[:, place]
        return self._sum_TD


def register_experts() -> None:
    """Make the function known to transformers."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, run_experts)


def run_experts(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Return (T, D): for each token the weighted sum of its experts' answers. The signature is transformers'."""
    table: ExpertTable = module.expert_table  # type: ignore[assignment]
    if table.is_only_routing:
        raise Routed(top_k_index, top_k_weights)
    table.routed_TK = top_k_index
    routing = _route(top_k_index)
    keeps = table.is_fetched and top_k_index.numel() <= _MOST_KEPT_ROWS
    total = _Sum(hidden_states, routing, keeps=keeps)
    weights = top_k_weights.flatten()
    with contextlib.closing(table.each(routing.experts, in_order=not keeps)) as experts:
        for expert, bound in experts:
            choices_R = routing.choices_R[expert]
            x_RD = hidden_states[choices_R.div(top_k_index.shape[1], rounding_mode="floor")]
            answer_RD = _run_expert(module, bound, x_RD, is_fixed=table.is_fixed)
            total.add(choices_R, answer_RD * weights[choices_R, None])
    return total.result()


def _route(index_TK: torch.Tensor) -> _Routing:
    """Sort the choices by expert, each expert's by token."""
    sorted_C, order_C = torch.sort(index_TK.flatten(), stable=True)
    experts, counts = torch.unique_consecutive(sorted_C, return_counts=True)
    experts = experts.tolist()
    choices = torch.split(order_C, counts.tolist())
    rank_TK = torch.argsort(torch.argsort(index_TK, dim=-1), dim=-1)
    return _Routing(experts, dict(zip(experts, choices, strict=True)), rank_TK)


def _run_expert(module: nn.Module, expert: BoundExpert, x_RD: torch.Tensor, *, is_fixed: bool) -> torch.Tensor:
    if module.has_gate:
        inner = module._apply_gate(expert.project("gate_up_proj", x_RD, is_fixed=is_fixed))  # type: ignore[operator]  # noqa: SLF001
    else:
        inner = module.act_fn(expert.project("up_proj", x_RD, is_fixed=is_fixed))  # type: ignore[operator]
    answer = expert.project("down_proj", inner, is_fixed=is_fixed)
    return module.post_expert_norm(answer) if module.has_post_expert_norm else answer  # type: ignore[operator]
