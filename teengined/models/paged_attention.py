"""Attention of one new token of each of several sequences over the blocks of a KV pool.

Everything comes as plain tensors in a few records, so that a kernel that reads the blocks where they lie can take this
function's place. Shape suffixes: B sequences, H query heads, K key-value heads, G = H / K, N and M blocks, T tokens,
C context, D width of a key, E width of a value.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from teengined.models.batch import DecodeRows
from teengined.models.kv import LayerBlocks

__all__ = ["Scoring", "attend_blocks", "attend_context", "attend_with_logits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How queries and keys become weights."""

    scale: float
    window: int | None = None
    """Tokens that a row sees, itself included."""
    softcap: float | None = None
    """Logits pass through `tanh(x / softcap) * softcap` (Gemma 2)."""
    sinks_H: torch.Tensor | None = None
    """One more logit for each head, whose weight is dropped (gpt-oss)."""

    @property
    def changes_logits(self) -> bool:
        """Whether the logits themselves must be seen."""
        return self.softcap is not None or self.sinks_H is not None


def attend_blocks(q_BHD: torch.Tensor, blocks: LayerBlocks, rows: DecodeRows, scoring: Scoring) -> torch.Tensor:
    """Return (B, H, E). The new tokens' own keys and values are in the blocks already."""
    k_BKCD, v_BKCE = blocks.gather(rows.tables_BM)
    return attend_context(q_BHD, k_BKCD, v_BKCE, rows, scoring)


def attend_context(
    q_BHD: torch.Tensor, k_BKCD: torch.Tensor, v_BKCE: torch.Tensor, rows: DecodeRows, scoring: Scoring
) -> torch.Tensor:
    """Return (B, H, E) over contexts that were gathered. Query groups take the place of tokens: no key is repeated."""
    num_rows, num_heads, width = q_BHD.shape
    k_BKCD, v_BKCE = k_BKCD[:, :, : rows.num_context], v_BKCE[:, :, : rows.num_context]
    mask = None if rows.mask_BC is None else rows.mask_BC[:, None, None, :]
    if scoring.changes_logits:
        return attend_with_logits(q_BHD[:, :, None], k_BKCD, v_BKCE, mask, scoring)[:, :, 0]
    q_BKGD = q_BHD.reshape(num_rows, k_BKCD.shape[1], -1, width)
    output = functional.scaled_dot_product_attention(q_BKGD, k_BKCD, v_BKCE, attn_mask=mask, scale=scoring.scale)
    return output.reshape(num_rows, num_heads, -1)


def attend_with_logits(
    q_BHTD: torch.Tensor, k_BKCD: torch.Tensor, v_BKCE: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring
) -> torch.Tensor:
    """Return (B, H, T, E) with visible logits, for architectures that change them. `mask` spreads over (B, 1, T, C)."""
    num_rows, num_heads, num_new, width = q_BHTD.shape
    num_kv_heads, num_context = k_BKCD.shape[1:3]
    q_BKSD = q_BHTD.reshape(num_rows, num_kv_heads, -1, width)
    logits_BHTC = (q_BKSD @ k_BKCD.transpose(2, 3)).view(num_rows, num_heads, num_new, num_context) * scoring.scale
    if scoring.softcap is not None:
        logits_BHTC = torch.tanh(logits_BHTC / scoring.softcap) * scoring.softcap
    if mask is not None:
        logits_BHTC = logits_BHTC.masked_fill(~mask, float("-inf"))
    if scoring.sinks_H is None:
        weights = torch.softmax(logits_BHTC, dim=-1, dtype=torch.float32).to(q_BHTD.dtype)
    else:
        weights = _softmax_with_sinks(logits_BHTC, scoring.sinks_H)
    weights_BKSC = weights.reshape(num_rows, num_kv_heads, -1, num_context)
    return (weights_BKSC @ v_BKCE).view(num_rows, num_heads, num_new, -1)


def _softmax_with_sinks(logits_BHTC: torch.Tensor, sinks_H: torch.Tensor) -> torch.Tensor:
    """Normalise over the context and one extra logit per head whose weight is dropped."""
    sinks = sinks_H.to(logits_BHTC.dtype).reshape(1, -1, 1, 1).expand(*logits_BHTC.shape[:3], 1)
    joined = torch.cat([logits_BHTC, sinks], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return torch.softmax(joined, dim=-1, dtype=joined.dtype)[..., :-1]
