import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from teengined_plugins.sources.quantised.grids import block_shape, scale_values, scaled

SIZES = st.integers(1, 9)


def by_number(values: torch.Tensor, grid: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    out = torch.empty(values.shape)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            out[row, column] = values[row, column].float() * grid[row // block[0], column // block[1]].float()
    return out


@given(rows=SIZES, columns=SIZES, block=st.tuples(SIZES, SIZES), seed=st.integers(0, 999))
def test_each_value_gets_the_scale_of_its_block_and_last_blocks_may_be_short(
    rows: int, columns: int, block: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    grid = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=generator)

    assert torch.equal(scaled(values, grid, wanted=block), by_number(values, grid, block))


@pytest.mark.parametrize("grid", [(1, 1), (4, 6), (16, 1), (1, 24), (2, 3)])
def test_transformers_unpacks_the_same(grid: tuple[int, int]) -> None:
    values = torch.randn(16, 24).to(torch.float8_e4m3fn)
    scale = torch.rand(grid)

    expected = Fp8Dequantize(None)._dequantize_one(values, scale, torch.float32)

    assert torch.equal(scaled(values, scale), expected)


def test_exponents_are_powers_of_two_with_a_bias() -> None:
    octets = torch.arange(1, 254, dtype=torch.uint8)

    assert scale_values(octets).tolist() == [2.0 ** (octet - 127) for octet in range(1, 254)]
    assert torch.equal(scale_values(octets), scale_values(octets.view(torch.float8_e8m0fnu)))


def test_a_stack_of_matrices_has_a_grid_or_a_scale_each() -> None:
    values = torch.randn(3, 4, 6)
    grids, single = torch.rand(3, 2, 3), torch.rand(3)

    stacked = scaled(values, grids)

    assert torch.equal(stacked, torch.stack([by_number(v, g, (2, 2)) for v, g in zip(values, grids, strict=True)]))
    assert torch.equal(scaled(values, single), values * single.reshape(3, 1, 1))
    assert torch.equal(scaled(values, single[:1]), values * single[0])


def test_one_scale_a_row_and_a_zero() -> None:
    values, scale, zero = torch.randint(-128, 128, (5, 7)), torch.rand(5), torch.randint(-9, 9, (5, 1))

    assert torch.equal(scaled(values, scale, zero=zero), (values - zero) * scale.reshape(5, 1))


@pytest.mark.parametrize("grid", [(3, 1), (1, 5), (0, 1), (32, 1)])
def test_a_grid_that_does_not_divide_the_matrix_is_an_error(grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        block_shape((16, 24), grid, (128, 128))


def test_a_grid_of_other_blocks_than_the_configuration_says_goes_by_itself() -> None:
    """Checkpoints with experts in finer blocks than the rest say the coarse ones."""
    assert block_shape((64, 64), (64, 2), (128, 128)) == (1, 32)
    assert block_shape((200, 130), (2, 2), (128, 128)) == (128, 128)
