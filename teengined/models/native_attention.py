"""Attention that reads the blocks where they lie, by the compiled kernel, on CPUs that have one.

A row's result is a function of its query and its context alone, bit for bit, so strict numerics take it for every row.
Shape suffixes: H query heads, R rows, D width of a key, E width of a value.
"""

import torch

from teengined.models.batch import RowContexts
from teengined.models.kv import LayerBlocks
from teengined.models.paged_attention import Scoring
from teengined.native.attention import MAX_WIDTH, LogitOptions, PagedContext, has_attention, paged_attention

__all__ = ["attend_rows", "can_attend_rows"]

_DTYPES = (torch.float32, torch.bfloat16)


def can_attend_rows(q_RHD: torch.Tensor, blocks: LayerBlocks) -> bool:
    """Say whether the kernel reads these. The answer is the same for every batch of one layer."""
    stored = blocks.keys_NKTD.dtype
    is_known = q_RHD.dtype in _DTYPES and stored in (q_RHD.dtype, torch.int8)
    width = max(blocks.keys_NKTD.shape[-1], blocks.values_NKTE.shape[-1])
    is_grouped = q_RHD.shape[1] % blocks.keys_NKTD.shape[1] == 0
    return q_RHD.device.type == "cpu" and is_known and is_grouped and width <= MAX_WIDTH and has_attention()


def attend_rows(q_RHD: torch.Tensor, blocks: LayerBlocks, contexts: RowContexts, scoring: Scoring) -> torch.Tensor:
    """Return (R, H, E). The new tokens' own keys and values are in the blocks already."""
    return paged_attention(
        q_RHD.contiguous(),
        PagedContext(
            keys=blocks.keys_NKTD,
            values=blocks.values_NKTE,
            tables=contexts.tables_RM,
            lengths=contexts.lengths_R,
            key_scales=blocks.key_scales_NKT,
            value_scales=blocks.value_scales_NKT,
        ),
        LogitOptions(
            scale=scoring.scale,
            window=scoring.window or 0,
            softcap=scoring.softcap or 0.0,
            sinks=None if scoring.sinks_H is None else scoring.sinks_H.float().contiguous(),
        ),
    )
