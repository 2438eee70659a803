"""Answers of experts add up to the same bits, whoever's answer comes first."""

import random

import pytest
import torch
from torch import nn

from teengined.models.experts import BoundExpert, ExpertTable, run_experts
from tests.fakes.converted import strategy_named

NUM_EXPERTS, WIDTH, INNER = 12, 16, 8


class Router(nn.Module):
    """What a module of transformers has that routes to experts."""

    has_gate = True
    has_post_expert_norm = False

    def __init__(self, table: ExpertTable) -> None:
        super().__init__()
        self.expert_table = table

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


def experts_of(dtype: torch.dtype) -> dict[int, BoundExpert]:
    strategy = strategy_named("fp32" if dtype == torch.float32 else "bf16")
    generator = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {"data": torch.randn(rows, columns, generator=generator).to(dtype)}

    return {
        expert: BoundExpert(strategy, {"gate_up_proj": matrix(2 * INNER, WIDTH), "down_proj": matrix(WIDTH, INNER)})
        for expert in range(NUM_EXPERTS)
    }


def routing(num_tokens: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, NUM_EXPERTS, generator=generator)
    weights, index = scores.topk(top_k, dim=-1)
    return index[:, torch.randperm(top_k, generator=generator)], weights


def eager(experts: dict[int, BoundExpert], x_TD: torch.Tensor, index: torch.Tensor, weights: torch.Tensor):
    """As the modules of transformers do it."""
    router, output_TD = Router(ExpertTable()), torch.zeros_like(x_TD)
    for expert in range(NUM_EXPERTS):
        rows, choices = torch.where(index == expert)
        if not len(rows):
            continue
        inner = router._apply_gate(experts[expert].project("gate_up_proj", x_TD[rows], is_fixed=False))
        answer = experts[expert].project("down_proj", inner, is_fixed=False)
        output_TD.index_add_(0, rows, (answer * weights[rows, choices, None]).to(output_TD.dtype))
    return output_TD


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 4), (7, 3), (5, 1), (600, 2)])
def test_the_sum_is_that_of_the_eager_modules_in_whatever_order_experts_come(
    dtype: torch.dtype, num_tokens: int, top_k: int
) -> None:
    experts = experts_of(dtype)
    x_TD = torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    index, weights = routing(num_tokens, top_k, seed=2)
    expected = eager(experts, x_TD, index, weights)
    table = ExpertTable()
    for expert, bound in experts.items():
        table.bind(expert, bound.strategy, bound.parameters)

    assert torch.equal(run_experts(Router(table), x_TD, index, weights), expected)
    for seed in range(5):
        orders: list[bool] = []

        def fetch(wanted, in_order, seed=seed, orders=orders):
            assert list(wanted) == sorted(set(index.flatten().tolist()))
            orders.append(in_order)
            order = list(wanted) if in_order else random.Random(seed).sample(list(wanted), len(wanted))
            yield from ((expert, experts[expert]) for expert in order)

        fetched = ExpertTable()
        fetched.fetch_with(fetch)
        assert torch.equal(run_experts(Router(fetched), x_TD, index, weights), expected), f"seed {seed}"
        assert orders == [num_tokens * top_k > 1024]


def test_experts_that_come_on_demand_are_let_go_of_when_a_product_fails() -> None:
    closed: list[bool] = []

    def fetch(wanted, in_order):
        try:
            yield wanted[0], BoundExpert(strategy_named("fp32"), {})
        finally:
            closed.append(True)

    table = ExpertTable()
    table.fetch_with(fetch)
    index, weights = routing(1, 2, seed=0)

    with pytest.raises(KeyError):
        run_experts(Router(table), torch.zeros(1, WIDTH), index, weights)
    assert closed == [True]
