"""A shape becomes larger or smaller: experts first, then layers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import RequestError
from teengined.modelpack.shape_scaling import ShapeSizes, scaled_config

ROUTED = {
    "num_hidden_layers": 5,
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "layer_types": ["full_attention"] * 5,
}
SIZES = ShapeSizes(outside_layers=1000, dense_of_layer=(300, *[100] * 4), expert_of_layer=(0, *[50] * 4))


def test_the_number_of_its_own_is_left_as_it_is() -> None:
    assert scaled_config(ROUTED, SIZES, SIZES.total(5, 32)) == ROUTED


def test_experts_change_before_layers_do() -> None:
    scaled = scaled_config(ROUTED, SIZES, SIZES.total(5, 48))

    assert (scaled["num_hidden_layers"], scaled["n_routed_experts"]) == (5, 48)
    assert scaled["layer_types"] == ROUTED["layer_types"]


def test_below_the_fewest_experts_that_the_router_needs_there_are_fewer_layers() -> None:
    scaled = scaled_config(ROUTED, SIZES, SIZES.total(3, 8))

    assert (scaled["num_hidden_layers"], scaled["n_routed_experts"]) == (3, 8)
    assert "layer_types" not in scaled


def test_above_twice_the_experts_there_are_more_layers() -> None:
    scaled = scaled_config(ROUTED, SIZES, SIZES.total(9, 64))

    assert (scaled["num_hidden_layers"], scaled["n_routed_experts"]) == (9, 64)


def test_a_dense_shape_changes_its_layers_only() -> None:
    sizes = ShapeSizes(outside_layers=1000, dense_of_layer=(100, 100), expert_of_layer=(0, 0))

    assert scaled_config({"num_hidden_layers": 2}, sizes, 1730) == {"num_hidden_layers": 7}


def test_a_wish_that_no_variant_comes_near_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"of 100 parameters: the nearest has 1\.8K"):
        scaled_config(ROUTED, SIZES, 100)


@given(st.integers(min_value=2000, max_value=200_000))
def test_whatever_is_not_refused_is_near_and_a_shape_that_its_router_can_use(wish: int) -> None:
    try:
        scaled = scaled_config(ROUTED, SIZES, wish)
    except RequestError:
        return

    experts = scaled["n_routed_experts"]
    assert abs(SIZES.total(scaled["num_hidden_layers"], experts) - wish) <= 0.1 * wish
    assert experts % 4 == 0
    assert experts // 4 * 2 >= 4
    assert scaled["num_hidden_layers"] >= 2
