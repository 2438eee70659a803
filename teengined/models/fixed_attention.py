"""Attention whose every row is a function of that row and its own context, bit for bit.

Rows are taken a fixed number at a time and contexts in fixed pieces that start at multiples of their size, zeros where
there are no more, so that every product has one shape and a library that picks its way by the shape picks the same
one. Pieces are joined by the softmax's running maximum and sum (Milakov and Gimelshein, "Online normalizer calculation
for softmax", 2018), in fp32; a piece that a row does not see changes neither. Shape suffixes: H query heads, K
key-value heads, S rows of one key-value head (its query groups times new tokens), F fixed rows, P context of a piece,
T new tokens, C context, D width of a key, E width of a value.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from teengined.interfaces.precision import FIXED_ROWS
from teengined.models.paged_attention import Scoring

__all__ = ["PIECE_TOKENS", "attend_fixed"]

# Context of one product: large enough to be worth a call, small enough that a short context wastes little.
PIECE_TOKENS = 64
# Below every logit, and finite, so that the difference of two is a number.
_NEVER = -1e30


def attend_fixed(
    q_HTD: torch.Tensor, k_KCD: torch.Tensor, v_KCE: torch.Tensor, start_position: int, scoring: Scoring
) -> torch.Tensor:
    """Return (H, T, E) in `q`'s dtype for rows at `start_position` and after, over the context up to the last."""
    num_heads, num_new, width = q_HTD.shape
    num_kv_heads = k_KCD.shape[0]
    num_rows = num_heads // num_kv_heads * num_new
    pieces = list(zip(_split(k_KCD.float(), PIECE_TOKENS), _split(v_KCE.float(), PIECE_TOKENS), strict=True))
    positions = [start_position + row % num_new for row in range(num_rows)]
    outputs: list[torch.Tensor] = []
    for index, q_KFD in enumerate(_split(q_HTD.float().reshape(num_kv_heads, num_rows, width), FIXED_ROWS)):
        rows = slice(index * FIXED_ROWS, (index + 1) * FIXED_ROWS)
        sinks_KF1 = _sinks(scoring, (num_kv_heads, num_new), rows, q_KFD)
        outputs.append(_attend_rows(q_KFD, positions[rows], pieces, scoring, sinks_KF1))
    output_KSE = torch.cat(outputs, dim=1)[:, :num_rows]
    return output_KSE.reshape(num_heads, num_new, -1).to(q_HTD.dtype)


def _attend_rows(
    q_KFD: torch.Tensor,
    positions: Sequence[int],
    pieces: Sequence[tuple[torch.Tensor, torch.Tensor]],
    scoring: Scoring,
    sinks_KF1: torch.Tensor | None,
) -> torch.Tensor:
    """Return (K, F, E). Pieces that no row sees are left out, which changes no bit: they would add nothing."""
    padded = [*positions, *[positions[-1]] * (FIXED_ROWS - len(positions))]
    rows_F1 = torch.tensor(padded, device=q_KFD.device)[:, None]
    first_seen = 0 if scoring.window is None else max(0, min(positions) - scoring.window + 1)
    largest_KF1 = q_KFD.new_full((*q_KFD.shape[:2], 1), _NEVER) if sinks_KF1 is None else sinks_KF1
    sum_KF1 = torch.zeros_like(largest_KF1) if sinks_KF1 is None else torch.ones_like(sinks_KF1)
    output_KFE = q_KFD.new_zeros((*q_KFD.shape[:2], pieces[0][1].shape[-1]))
    for index in range(first_seen // PIECE_TOKENS, max(positions) // PIECE_TOKENS + 1):
        k_KPD, v_KPE = pieces[index]
        places_P = torch.arange(index * PIECE_TOKENS, (index + 1) * PIECE_TOKENS, device=q_KFD.device)
        hidden_FP = places_P > rows_F1
        if scoring.window is not None:
            hidden_FP = hidden_FP | (places_P <= rows_F1 - scoring.window)
        logits_KFP = torch.bmm(q_KFD, k_KPD.transpose(1, 2)) * scoring.scale
        if scoring.softcap is not None:
            logits_KFP = torch.tanh(logits_KFP / scoring.softcap) * scoring.softcap
        logits_KFP = logits_KFP.masked_fill(hidden_FP, _NEVER)
        new_KF1 = torch.maximum(largest_KF1, logits_KFP.max(dim=-1, keepdim=True).values)
        weights_KFP = torch.exp(logits_KFP - new_KF1).masked_fill(hidden_FP, 0.0)
        shrink_KF1 = torch.exp(largest_KF1 - new_KF1)
        sum_KF1 = sum_KF1 * shrink_KF1 + weights_KFP.sum(dim=-1, keepdim=True)
        output_KFE = output_KFE * shrink_KF1 + torch.bmm(weights_KFP, v_KPE)
        largest_KF1 = new_KF1
    return output_KFE / sum_KF1


def _split(states_KXD: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Return pieces of `size` along the second axis, the last filled up with zeros, each in memory of its own."""
    padded = functional.pad(states_KXD, (0, 0, 0, -states_KXD.shape[1] % size))
    return [piece.contiguous() for piece in padded.split(size, dim=1)]


def _sinks(
    scoring: Scoring, heads_and_tokens: tuple[int, int], rows: slice, q_KFD: torch.Tensor
) -> torch.Tensor | None:
    """Return the sink logits (K, F, 1) of a block of rows."""
    if scoring.sinks_H is None:
        return None
    num_kv_heads, num_new = heads_and_tokens
    sinks_KS = scoring.sinks_H.to(q_KFD.dtype).reshape(num_kv_heads, -1).repeat_interleave(num_new, dim=1)[:, rows]
    return functional.pad(sinks_KS, (0, FIXED_ROWS - sinks_KS.shape[1]))[..., None]
