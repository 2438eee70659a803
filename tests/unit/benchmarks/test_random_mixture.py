"""The routing of the random mixture is uneven as that of real models, and every expert has its turn."""

import pytest
import torch

from benchmarks.random_mixture import common_direction, router_rows

NUM_EXPERTS, NUM_CHOSEN, WIDTH = 32, 4, 256


def popularity_of(seed: int, common_share: float) -> torch.Tensor:
    """Return the share of all choices that each expert gets, largest first.

    Legend: E experts, I width, T tokens. `common_share` is that of a token's direction.
    """
    rows_EI = router_rows(NUM_EXPERTS, WIDTH, seed)
    own_TI = torch.randn((4_000, WIDTH), generator=torch.Generator().manual_seed(seed))
    tokens_TI = common_share * common_direction(WIDTH) + (1 - common_share**2) ** 0.5 * own_TI
    chosen_TE = (tokens_TI @ rows_EI.T).topk(NUM_CHOSEN).indices
    counts_E = torch.bincount(chosen_TE.flatten(), minlength=NUM_EXPERTS).double()
    return (counts_E / counts_E.sum()).sort(descending=True).values


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("common_share", [0.75, 0.85])
def test_most_popular_quarter_of_experts_gets_about_half_to_three_quarters(seed: int, common_share: float) -> None:
    quarter = popularity_of(seed, common_share)[: NUM_EXPERTS // 4].sum()

    assert 0.42 < quarter < 0.75


@pytest.mark.parametrize("seed", range(4))
def test_even_the_least_popular_expert_has_its_turn(seed: int) -> None:
    assert popularity_of(seed, 0.8)[-1] > 0


def test_layers_prefer_different_experts() -> None:
    common_I = common_direction(WIDTH)
    order = [tuple((router_rows(NUM_EXPERTS, WIDTH, seed) @ common_I).argsort().tolist()) for seed in (1, 2)]

    assert order[0] != order[1]
