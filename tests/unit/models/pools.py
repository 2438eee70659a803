"""KV pools on the CPU, and sequences whose blocks lie all over them."""

import random
from collections.abc import Iterable, Sequence

import torch

from teengined.core.device import DeviceSpec
from teengined.models.batch import BatchEntry, StepBatch
from teengined.models.cache import StepCache
from teengined.models.kv import KVPool, PoolShape
from teengined_drivers.cpu import CpuDevice

__all__ = ["batch_of", "make_device", "make_pool", "make_tables", "store"]

BLOCK_TOKENS = 4


def make_device(memory_bytes: int = 1 << 24) -> CpuDevice:
    """Return a CPU of so much memory; the process keeps its threads."""
    return CpuDevice(DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=memory_bytes))


def make_pool(
    elements: int, *, num_blocks: int = 64, num_layers: int = 1, quantised: bool = False, num_kv_heads: int = 2
) -> KVPool:
    """Return a pool of layers that keep `elements` numbers for each token, in fp32 or int8."""
    shape = PoolShape(
        num_blocks=num_blocks,
        block_tokens=BLOCK_TOKENS,
        elements_per_token=dict.fromkeys(range(num_layers), elements),
        num_kv_heads=num_kv_heads,
        dtype=torch.float32,
        quantised=quantised,
    )
    return KVPool(make_device(), shape)


def make_tables(num_tokens: Sequence[int], pool: KVPool, seed: int = 0) -> list[list[int]]:
    """Return a table for each sequence, of distinct blocks in no order."""
    blocks = list(range(pool.shape.num_blocks))
    random.Random(seed).shuffle(blocks)
    return [[blocks.pop() for _ in range(-(-count // BLOCK_TOKENS))] for count in num_tokens]


def batch_of(pool: KVPool, tables: Iterable[Sequence[int]], spans: Iterable[tuple[int, int]]) -> StepBatch:
    """Return a batch of sequences with new tokens in `[start, end)` each."""
    entries = [
        BatchEntry(table=table, num_tokens=end - start, start_position=start)
        for table, (start, end) in zip(tables, spans, strict=True)
    ]
    return StepBatch(entries, pool)


def store(cache: StepCache, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Store the new keys and values, (1, K, T, D) for each sequence, in layer 0; return them as attention gets them."""
    return list(cache.update(torch.cat(list(keys), dim=2), torch.cat(list(values), dim=2), 0))
