"""Attention over each sequence's blocks, put into transformers through its `AttentionInterface`.

No mask reaches this function: causality, sliding windows, soft caps and sinks are applied here from what the modules
pass. Shape suffixes: H query heads, K key-value heads, R rows (new tokens), B sequences, T new tokens of one, C
context, D width of a key, E width of a value.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from teengined.models.batch import ChunkRows, DecodeRows, StepBatch
from teengined.models.cache import StepCache, current_cache
from teengined.models.fixed_attention import attend_fixed
from teengined.models.kv import LayerBlocks
from teengined.models.latent_attention import LatentAttention, LatentQuery
from teengined.models.native_attention import attend_rows, can_attend_rows
from teengined.models.paged_attention import Scoring, attend_blocks, attend_context, attend_with_logits

__all__ = ["ATTENTION_NAME", "attend", "attend_stored", "register_attention"]

ATTENTION_NAME = "teengine"

# Rows of a chunk up to which the compiled kernel, which reads the context for each row, is ahead of gathering it once.
# Measured with 8 to 12 rows of a prompt of 4,000 tokens, beside 8 that decode: 28 s instead of 38.
_FEW_ROWS = 16


def register_attention() -> None:
    """Make the function known to transformers. Not in its mask registry: that tells it to make no masks."""
    AttentionInterface.register(ATTENTION_NAME, attend)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return (1, R, H, E) for the batch's packed queries (1, H, R, D). The signature is transformers'.

    Keys and values are the new tokens', which the cache has stored. Options read: `sliding_window`, `softcap`, `s_aux`
    (one sink logit per head).
    """
    cache = current_cache.get()
    blocks = cache.stored(key, value)
    call = _Call(
        batch=cache.batch,
        blocks=blocks,
        new_states=(key, value),
        latents=getattr(module, "latent_attention", None),
        scoring=Scoring(
            scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
            window=options.get("sliding_window"),
            softcap=options.get("softcap"),
            sinks_H=options.get("s_aux"),
        ),
    )
    if call.latents is None:
        cache.attended = (blocks, call.scoring)
    output_RHE = _attend_fixed(call, query) if cache.is_strict else _attend(call, query)
    return output_RHE[None], None


def attend_stored(
    cache: StepCache,
    blocks: LayerBlocks,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scoring: Scoring,
) -> torch.Tensor:
    """Return (R, H, E) for queries (R, H, D) whose keys (R, K, D) and values (R, K, E) the blocks hold already."""
    q_1HRD, k_1KRD, v_1KRE = (state.transpose(0, 1)[None] for state in states)
    call = _Call(batch=cache.batch, blocks=blocks, new_states=(k_1KRD, v_1KRE), latents=None, scoring=scoring)
    return _attend(call, q_1HRD)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What a layer's attention works on, beside its queries."""

    batch: StepBatch
    blocks: LayerBlocks
    new_states: tuple[torch.Tensor, torch.Tensor]
    """As they were stored, in full precision."""
    latents: LatentAttention | None
    """Where the blocks hold latents, and rotated keys as values."""
    scoring: Scoring


def _attend(call: _Call, q_1HRD: torch.Tensor) -> torch.Tensor:
    """Return (R, H, E): decode rows together, chunks one by one."""
    chunks = call.batch.chunks(call.scoring.window)
    q_RHD = q_1HRD[0].transpose(0, 1)
    if all(chunk.num_tokens <= _FEW_ROWS for chunk in chunks) and _is_native(call, q_RHD):
        return attend_rows(q_RHD, call.blocks, call.batch.contexts(decode_only=False), call.scoring)
    outputs: list[tuple[torch.Tensor | slice, torch.Tensor]] = []
    if len(chunks) < len(call.batch.entries):
        outputs += _decode_outputs(call, q_RHD)
    outputs += [(chunk.rows, _attend_chunk(call, q_1HRD[:, :, chunk.rows], chunk)) for chunk in chunks]
    if len(outputs) == 1:  # All rows, in their order.
        return outputs[0][1]
    return _joined(outputs, call.batch.num_tokens)


def _decode_outputs(call: _Call, q_RHD: torch.Tensor) -> list[tuple[torch.Tensor | slice, torch.Tensor]]:
    """Return (rows, (B, H, E)) of the sequences with one new token."""
    if _is_native(call, q_RHD):
        contexts = call.batch.contexts(decode_only=True)
        q_BHD = q_RHD if contexts.rows is None else q_RHD[contexts.rows]
        output_BHE = attend_rows(q_BHD, call.blocks, contexts, call.scoring)
        return [(slice(None) if contexts.rows is None else contexts.rows, output_BHE)]
    groups = call.batch.decode_rows(call.scoring.window)
    if len(groups) == 1 and len(groups[0].rows) == call.batch.num_tokens:
        return [(slice(None), _attend_decode(call, q_RHD, groups[0]))]
    return [(group.rows_B, _attend_decode(call, q_RHD[group.rows_B], group)) for group in groups]


def _is_native(call: _Call, q_RHD: torch.Tensor) -> bool:
    return call.latents is None and can_attend_rows(q_RHD, call.blocks)


def _attend_decode(call: _Call, q_BHD: torch.Tensor, rows: DecodeRows) -> torch.Tensor:
    if call.latents is None:
        return attend_blocks(q_BHD, call.blocks, rows, call.scoring)
    latents, rotary = (states[:, :, : rows.num_context] for states in call.blocks.gather(rows.tables_BM))
    num_context = len(rows.rows) * rows.num_context
    if not call.scoring.changes_logits and call.latents.is_less_work(1, num_context):
        query = LatentQuery(
            q_BHTD=q_BHD[:, :, None],
            latents_B1CL=latents,
            rotary_B1CR=rotary,
            mask_BTC=None if rows.mask_BC is None else rows.mask_BC[:, None],
            scale=call.scoring.scale,
        )
        return call.latents.attend(query)[:, 0]
    return attend_context(q_BHD, *call.latents.expand(latents, rotary), rows, call.scoring)


def _attend_chunk(call: _Call, q_1HTD: torch.Tensor, chunk: ChunkRows) -> torch.Tensor:
    """Return (T, H, E) for one sequence's rows."""
    k_1KCD, v_1KCE = _context(call, chunk)
    if call.latents is not None:
        is_less_work = call.latents.is_less_work(chunk.num_tokens, chunk.num_context)
        if is_less_work and chunk.mask_RC is not None and not call.scoring.changes_logits:
            query = LatentQuery(
                q_BHTD=q_1HTD,
                latents_B1CL=k_1KCD,
                rotary_B1CR=v_1KCE,
                mask_BTC=chunk.mask_RC[None],
                scale=call.scoring.scale,
            )
            return call.latents.attend(query)[0]
        k_1KCD, v_1KCE = call.latents.expand(k_1KCD, v_1KCE)
    if call.scoring.changes_logits:
        mask_TC = _causal(q_1HTD) if chunk.mask_RC is None else chunk.mask_RC
        output = attend_with_logits(q_1HTD, k_1KCD, v_1KCE, mask_TC, call.scoring)
    else:
        output = functional.scaled_dot_product_attention(
            q_1HTD,
            k_1KCD,
            v_1KCE,
            attn_mask=chunk.mask_RC,
            is_causal=chunk.mask_RC is None,
            scale=call.scoring.scale,
            enable_gqa=True,
        )
    return output[0].transpose(0, 1)


def _context(call: _Call, chunk: ChunkRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys (1, K, C, D) and values (1, K, C, E) that a chunk looks at, as they are stored."""
    if chunk.start_position == 0 and call.blocks.key_scales_NKT is None:
        keys, values = (states[:, :, chunk.rows] for states in call.new_states)
    else:
        keys, values = (states[:, :, : chunk.num_context] for states in call.blocks.gather(chunk.table_1M))
    return keys, values


def _attend_fixed(call: _Call, q_1HRD: torch.Tensor) -> torch.Tensor:
    """Return (R, H, E), each row by itself, or each sequence in pieces of fixed shape."""
    batch, outputs = call.batch, list[tuple[torch.Tensor | slice, torch.Tensor]]()
    q_RHD = q_1HRD[0].transpose(0, 1)
    if _is_native(call, q_RHD):
        return attend_rows(q_RHD, call.blocks, batch.contexts(decode_only=False), call.scoring)
    for index, entry in enumerate(batch.entries):
        rows = slice(batch.first_rows[index], batch.first_rows[index] + entry.num_tokens)
        keys, values = (states[:, :, : entry.end_position] for states in call.blocks.gather(batch.table(index)))
        keys, values = (keys, values) if call.latents is None else call.latents.expand(keys, values)
        output = attend_fixed(q_1HRD[0, :, rows], keys[0], values[0], entry.start_position, call.scoring)
        outputs.append((rows, output.transpose(0, 1)))
    return _joined(outputs, batch.num_tokens)


def _joined(outputs: list[tuple[torch.Tensor | slice, torch.Tensor]], num_rows: int) -> torch.Tensor:
    """Put each part's rows (…, H, E) to their places."""
    first = outputs[0][1]
    joined_RHE = first.new_empty((num_rows, *first.shape[1:]))
    for rows, output in outputs:
        joined_RHE[rows] = output
    return joined_RHE


def _causal(q_1HTD: torch.Tensor) -> torch.Tensor:
    """Return (T, T), true where a row of a whole prompt may look: itself and before."""
    num_new = q_1HTD.shape[2]
    return torch.ones(num_new, num_new, dtype=torch.bool, device=q_1HTD.device).tril_()
