"""A pool holds what was written into its blocks, and takes from its device what was promised and no more."""

import math

import pytest
import torch

from teengined.core.errors import OutOfDeviceMemory, PackageError
from teengined.models.kv import KVPool, LayerBlocks, PoolShape, layer_bytes
from tests.unit.models.pools import batch_of, make_device, make_pool

TABLE = [6, 1]


def write(pool: KVPool, states: torch.Tensor, layer: int = 0, table: list[int] = TABLE) -> LayerBlocks:
    """Write keys, and values with the other sign, at the start of a sequence."""
    blocks = pool.layer(layer, states, -states)
    batch = batch_of(pool, [table], [(0, states.shape[2])])
    blocks.write(batch.write_rows(states.shape[1]), states, -states)
    return blocks


def read(blocks: LayerBlocks, table: list[int] = TABLE) -> torch.Tensor:
    return blocks.gather(torch.tensor([table], dtype=torch.int32))[0]


def states(num_tokens: int, seed: int = 0, num_heads: int = 2) -> torch.Tensor:
    return torch.randn(1, num_heads, num_tokens, 3, generator=torch.Generator().manual_seed(seed))


def test_what_was_written_is_gathered_in_order() -> None:
    written = states(7)

    keys, values = write(make_pool(12), written).gather(torch.tensor([TABLE], dtype=torch.int32))

    assert torch.equal(keys[:, :, :7], written)
    assert torch.equal(values[:, :, :7], -written)
    assert keys.shape == (1, 2, 8, 3)


def test_layers_do_not_share_states() -> None:
    pool = make_pool(12, num_layers=2)
    first, second = write(pool, states(7, 0), 0), write(pool, states(7, 1), 1)

    assert torch.equal(read(first)[:, :, :7], states(7, 0))
    assert torch.equal(read(second)[:, :, :7], states(7, 1))


def test_keys_and_values_may_differ_in_width() -> None:
    blocks = make_pool(2 * (5 + 3)).layer(0, torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 3))

    assert (blocks.keys_NKTD.shape, blocks.values_NKTE.shape) == ((64, 2, 4, 5), (64, 2, 4, 3))


def test_a_layer_that_keeps_more_than_the_manifest_says_is_refused() -> None:
    with pytest.raises(PackageError, match=r"layer 0 keeps 12 numbers of 2 heads for each token; .* say 11 of 2"):
        write(make_pool(11), states(1))


def test_int8_with_more_heads_than_scales_is_refused() -> None:
    with pytest.raises(PackageError, match="layer 0 keeps 24 numbers of 4 heads"):
        write(make_pool(24, quantised=True), states(1, num_heads=4))


def test_a_copied_block_holds_the_same_in_every_layer() -> None:
    for quantised in (False, True):
        pool = make_pool(12, num_layers=2, quantised=quantised)
        layers = [write(pool, states(7, layer), layer) for layer in range(2)]

        pool.copy([6, 1], [9, 8])

        for layer in layers:
            assert torch.equal(read(layer, [9, 8]), read(layer))


def test_copies_read_before_they_write() -> None:
    pool = make_pool(12)
    layer = write(pool, states(7))
    before = read(layer)

    pool.copy([6, 1], [1, 6])

    assert torch.equal(read(layer, [1, 6]), before)


def test_a_cleared_block_holds_nothing_of_its_last_owner() -> None:
    pool = make_pool(12)
    layer = write(pool, torch.full((1, 2, 7, 3), math.nan))

    pool.clear([1])

    assert read(layer, [1]).abs().sum() == 0
    assert read(layer, [6]).isnan().all()


def test_int8_is_within_half_a_step_of_the_largest() -> None:
    written = states(7)

    gathered = read(write(make_pool(12, quantised=True), written))[:, :, :7]

    step = written.abs().amax(-1, keepdim=True) / 127
    assert ((gathered - written).abs() <= step / 2 * 1.0001).all()


def test_int8_keeps_nan_and_infinity_as_nan_so_that_a_fault_is_seen() -> None:
    written = states(3)
    written[0, 0, 0, 1], written[0, 0, 1, 1] = math.nan, math.inf

    gathered = read(write(make_pool(12, quantised=True), written))

    assert gathered[0, 0, 0].isnan().all()
    assert gathered[0, 0, 1].isnan().any()
    assert gathered[0, 0, 2].isfinite().all()


def pool_shape(dtype: torch.dtype, *, quantised: bool) -> PoolShape:
    return PoolShape(
        num_blocks=8,
        block_tokens=16,
        elements_per_token={0: 2 * 4 * 128},
        num_kv_heads=4,
        dtype=dtype,
        quantised=quantised,
    )


def test_int8_takes_about_half_of_bf16() -> None:
    plain = layer_bytes(pool_shape(torch.bfloat16, quantised=False), 0)
    int8 = layer_bytes(pool_shape(torch.bfloat16, quantised=True), 0)

    # One scale of four bytes for 128 numbers is the rest.
    assert int8 / plain == pytest.approx(0.5 * (1 + 4 / 128))


def test_memory_is_taken_from_the_device_and_given_back() -> None:
    device = make_device()
    pool = KVPool(device, pool_shape(torch.float32, quantised=False))

    assert device.memory_info().allocated_bytes == 8 * 16 * 1024 * 4

    pool.close()
    pool.close()
    assert device.memory_info().allocated_bytes == 0


def test_a_pool_beyond_the_budget_is_refused() -> None:
    with pytest.raises(OutOfDeviceMemory, match="left of its budget"):
        KVPool(make_device(memory_bytes=1 << 16), pool_shape(torch.float32, quantised=False))
