"""Attention over each sequence's own context, put into transformers through its `AttentionInterface`.

No mask reaches this function: causality, sliding windows, soft caps and sinks are applied here from what the modules
pass. Shape suffixes: H query heads, K key-value heads, G = H / K, T new tokens, C context, D head width.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from teengined.models.batch import current_batch

__all__ = ["ATTENTION_NAME", "attend", "register_attention"]

ATTENTION_NAME = "teengine"


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
    """Return (1, T, H, D) for a packed query (1, H, T, D) over packed contexts (1, K, sum of C, D).

    The signature is transformers'. Options read: `sliding_window`, `softcap`, `s_aux` (one sink logit per head).
    """
    entries = current_batch.get().entries
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    queries = query.split([entry.num_tokens for entry in entries], dim=2)
    keys = key.split([entry.end_position for entry in entries], dim=2)
    values = value.split([entry.end_position for entry in entries], dim=2)
    outputs = [_attend_one(q, k, v, scale, options) for q, k, v in zip(queries, keys, values, strict=True)]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output.transpose(1, 2), None


def _attend_one(
    q_1HTD: torch.Tensor, k_1KCD: torch.Tensor, v_1KCD: torch.Tensor, scale: float, options: dict[str, Any]
) -> torch.Tensor:
    num_new, window = q_1HTD.shape[2], options.get("sliding_window")
    if window is not None and num_new == 1:
        k_1KCD, v_1KCD = k_1KCD[:, :, -window:], v_1KCD[:, :, -window:]
        window = None
    num_context = k_1KCD.shape[2]
    if window is not None and num_context <= window:
        window = None
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    if softcap is not None or sinks is not None:
        mask = _visible(num_new, num_context, window, q_1HTD.device) if num_new > 1 else None
        return _attend_with_logits(q_1HTD, k_1KCD, v_1KCD, scale, (mask, softcap, sinks))
    if num_new == 1:
        return _attend_one_token(q_1HTD, k_1KCD, v_1KCD, scale)
    whole = num_new == num_context and window is None
    mask = None if whole else _visible(num_new, num_context, window, q_1HTD.device)
    num_groups = q_1HTD.shape[1] // k_1KCD.shape[1]
    return functional.scaled_dot_product_attention(
        q_1HTD,
        k_1KCD.repeat_interleave(num_groups, 1),
        v_1KCD.repeat_interleave(num_groups, 1),
        attn_mask=mask,
        is_causal=whole,
        scale=scale,
    )


def _attend_one_token(q_1H1D: torch.Tensor, k_1KCD: torch.Tensor, v_1KCD: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend with one token, its query groups in the place of tokens, so that no key is copied per group."""
    _, num_heads, _, width = q_1H1D.shape
    num_kv_heads = k_1KCD.shape[1]
    q_1KGD = q_1H1D.reshape(1, num_kv_heads, num_heads // num_kv_heads, width)
    output = functional.scaled_dot_product_attention(q_1KGD, k_1KCD, v_1KCD, scale=scale)
    return output.reshape(1, num_heads, 1, v_1KCD.shape[-1])


def _attend_with_logits(
    q_1HTD: torch.Tensor,
    k_1KCD: torch.Tensor,
    v_1KCD: torch.Tensor,
    scale: float,
    changes: tuple[torch.Tensor | None, float | None, torch.Tensor | None],
) -> torch.Tensor:
    """Attend with visible logits, for architectures that change them: cap (Gemma 2) or a sink (gpt-oss)."""
    mask_TC, softcap, sinks_H = changes
    num_groups = q_1HTD.shape[1] // k_1KCD.shape[1]
    k_1HCD, v_1HCD = k_1KCD.repeat_interleave(num_groups, 1), v_1KCD.repeat_interleave(num_groups, 1)
    logits_1HTC = (q_1HTD @ k_1HCD.transpose(2, 3)) * scale
    if softcap is not None:
        logits_1HTC = torch.tanh(logits_1HTC / softcap) * softcap
    if mask_TC is not None:
        logits_1HTC = logits_1HTC.masked_fill(~mask_TC, float("-inf"))
    if sinks_H is None:
        weights = torch.softmax(logits_1HTC, dim=-1, dtype=torch.float32).to(q_1HTD.dtype)
    else:
        weights = _softmax_with_sinks(logits_1HTC, sinks_H)
    return weights @ v_1HCD


def _softmax_with_sinks(logits_1HTC: torch.Tensor, sinks_H: torch.Tensor) -> torch.Tensor:
    """Normalise over the context and one extra logit per head whose weight is dropped."""
    sinks = sinks_H.to(logits_1HTC.dtype).reshape(1, -1, 1, 1).expand(-1, -1, logits_1HTC.shape[2], 1)
    joined = torch.cat([logits_1HTC, sinks], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return torch.softmax(joined, dim=-1, dtype=joined.dtype)[..., :-1]


def _visible(num_new: int, num_context: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return (T, C), true where a new token may look: itself and before, at most `window` tokens back."""
    positions_C = torch.arange(num_context, device=device)
    positions_T1 = positions_C[num_context - num_new :, None]
    visible = positions_C <= positions_T1
    return visible if window is None else visible & (positions_C > positions_T1 - window)
