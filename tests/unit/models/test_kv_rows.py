"""Blocks come back from rows of bytes as they were, in every dtype, also before a layer's tensors exist."""

import pytest
import torch

from teengined.models.kv import KVPool
from tests.unit.models.pools import BLOCK_TOKENS, make_pool


def filled(pool: KVPool, num_layers: int, width: int, first: float = 1.0) -> None:
    """Cut the layers and fill every block with its number, beginning with `first`."""
    states = torch.zeros(1, 2, 1, width)
    for index in range(num_layers):
        for tensor in pool.layer(index, states, states).tensors():
            numbers = torch.arange(tensor.shape[0]).view(-1, *[1] * (tensor.dim() - 1))
            tensor.copy_(numbers % 50 + first + index)


def contents(pool: KVPool, num_layers: int, width: int, block: int) -> list[float]:
    states = torch.zeros(1, 2, 1, width)
    found = [tensor[block] for index in range(num_layers) for tensor in pool.layer(index, states, states).tensors()]
    assert all(len(tensor.unique()) == 1 for tensor in found)
    return [float(tensor.flatten()[0]) for tensor in found]


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("width", [3, 4])
def test_blocks_come_back_into_other_blocks(quantised: bool, width: int) -> None:
    with torch.inference_mode():
        pool = make_pool(4 * width, num_layers=2, quantised=quantised)
        filled(pool, 2, width)
        rows = torch.zeros(5, pool.block_bytes + 4 - pool.block_bytes % 4, dtype=torch.uint8)
        expected = [contents(pool, 2, width, block) for block in (7, 30)]
        pool.save([7, 30], rows, [4, 1])
        filled(pool, 2, width, first=9.0)
        before = contents(pool, 2, width, 8)

        pool.load([50, 2], rows, [4, 1])

        assert [contents(pool, 2, width, block) for block in (50, 2)] == expected
        assert contents(pool, 2, width, 8) == before


def test_rows_that_come_before_the_layers_find_their_way() -> None:
    with torch.inference_mode():
        first, second = make_pool(16, num_layers=2), make_pool(16, num_layers=2)
        filled(first, 2, 4)
        rows = torch.zeros(3, first.block_bytes, dtype=torch.uint8)
        first.save([1, 2, 3], rows, [0, 1, 2])

        second.load([10, 11, 12], rows, [0, 1, 2])
        second.clear([11])
        second.copy([12], [13])
        second.clear_tails({13: 1})

        expected = [contents(first, 2, 4, block) for block in (1, 3)]
        assert [contents(second, 2, 4, block) for block in (10, 12)] == expected
        assert contents(second, 2, 4, 11) == [0.0] * 4
        states = torch.zeros(1, 2, 1, 4)
        tail = second.layer(0, states, states).keys_NKTD[13]
        assert tail[:, 0].eq(expected[1][0]).all()
        assert tail[:, 1:BLOCK_TOKENS].eq(0).all()
