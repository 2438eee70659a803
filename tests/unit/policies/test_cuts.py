"""Whole layers in proportion to anything."""

import pytest

from teengined_plugins.policies.cuts import apportion


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 1, 1], 7, [3, 2, 2]),
        ([3, 1], 8, [6, 2]),
        ([0, 5], 4, [0, 4]),
        ([0, 0], 3, [2, 1]),
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),
        ([10.0], 5, [5]),
    ],
)
def test_layers_are_apportioned_by_weight_and_always_add_up(
    weights: list[float], total: int, expected: list[int]
) -> None:
    assert apportion(weights, total) == expected
