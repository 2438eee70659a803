import pytest
import torch

from teengined.core.errors import SourceError
from teengined_plugins.precisions.int8 import Int8Precision
from teengined_plugins.precisions.kernel_choice import KernelChoice


def test_largest_of_each_channel_is_kept_exactly() -> None:
    weight = torch.randn(20, 50)

    parts = Int8Precision().encode(weight)

    assert (parts["data"].dtype, parts["scale"].dtype) == (torch.int8, torch.float32)
    torch.testing.assert_close(parts["scale"] * 127, weight.abs().amax(1))
    assert bool((parts["data"].int().abs().amax(1) == 127).all())


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(20, 50)
    parts = Int8Precision().encode(weight)

    decoded = Int8Precision().decode(parts, torch.float32)

    assert bool(((decoded - weight).abs() <= parts["scale"][:, None] * 0.5001).all())


def test_stack_of_experts_is_quantised_as_each_alone() -> None:
    stacked = torch.randn(3, 8, 16)

    together = Int8Precision().encode(stacked)

    assert together["scale"].shape == (3, 8)
    for expert in range(3):
        alone = Int8Precision().encode(stacked[expert])
        assert torch.equal(together["data"][expert], alone["data"])
        assert torch.equal(together["scale"][expert], alone["scale"])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = torch.randn(4, 8)
    weight[2, 3] = value

    with pytest.raises(SourceError, match="infinities or NaN"):
        Int8Precision().encode(weight)


def test_unmeasured_strategy_always_uses_the_same_kernel() -> None:
    choice = KernelChoice(measures=False)
    precision = Int8Precision(choice)
    parts = precision.encode(torch.randn(64, 64))

    first, second = (precision.linear(torch.ones(2, 64), parts, None) for _ in range(2))

    assert torch.equal(first, second)
    assert choice.winners() == {}


def test_choices_are_remembered_by_kind_and_not_by_address() -> None:
    precision = Int8Precision()
    for _ in range(3):
        parts = precision.encode(torch.randn(64, 128))
        precision.linear(torch.randn(2, 128).bfloat16(), parts, None)

    assert len(precision.choice.winners()) == 1
