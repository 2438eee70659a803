"""Multi-head latent attention: contexts are stored as latents, and expanded only where that is less work.

Such a module keeps one latent `l` and one rotated key for all heads; its up-projection W makes a key and a value of
each for every head. For a few new tokens and a long context this is nearly all the work there is. But
q · (W_k l) = (W_k^T q) · l, and the sum of a (W_v l) is W_v times the sum of a l: so W can be applied to the queries
and to the answers instead, and the context attended to as one head's ("absorbed", DeepSeek-V2, arXiv:2405.04434).

Shape suffixes: B sequences, H heads, T new tokens of one, S = H * T, C context, D width of a query, N of its part that
is not rotated, E of a value, L of a latent, R of the rotated part, O = N + E.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from teengined.models.linear import StrategyLinear

__all__ = ["LatentAttention", "LatentQuery", "defer_expansion"]

logger = logging.getLogger(__name__)

# The weight is looked at whole for a step, however short the contexts are: as much work as expanding so many tokens, as
# measured on a CPU with bf16, int8 and int4 alike.
_LEAST_CONTEXT_TOKENS = 128
# Each new token looks at latents, which are several times as wide as keys: with more of them expanding is less work.
_MOST_NEW_TOKENS = 64
# What two ways of rounding may differ by, as a share of the answer.
_TOLERANCE = 0.03


def defer_expansion(model: nn.Module) -> None:
    """Let modules with multi-head latent attention hand over their latents: each gets a `latent_attention`.

    They store latents, and expand what the cache returns into keys and values with `expand_kv`.
    """
    for module in model.modules():
        if hasattr(module, "expand_kv"):
            module.latent_attention = LatentAttention(module)  # type: ignore[assignment]
            module.expand_kv = _as_they_are  # type: ignore[assignment]


def _as_they_are(latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return latent, rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentQuery:
    """New tokens and the context that they look at."""

    q_BHTD: torch.Tensor
    latents_B1CL: torch.Tensor
    rotary_B1CR: torch.Tensor
    """The rotated part of the keys."""
    mask_BTC: torch.Tensor | None
    """True where a row may look; None: everywhere. Spreads over (B, T, C)."""
    scale: float


class LatentAttention:
    """Stands for what one module does with its latents. Its weight is bound from outside before each call."""

    def __init__(self, module: nn.Module) -> None:
        """Remember the module's own expansion."""
        self._module = cast("Any", module)
        self._expand = cast("Callable[..., tuple[torch.Tensor, torch.Tensor]]", module.expand_kv)
        self._is_alike: bool | None = None

    @property
    def is_absorbed(self) -> bool:
        """Whether attending to latents agreed with the module's expansion, and is used now."""
        return bool(self._is_alike)

    def expand(self, latents_B1CL: torch.Tensor, rotary_B1CR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys (B, H, C, D) and values (B, H, C, E)."""
        return self._expand(latents_B1CL, rotary_B1CR)

    def is_less_work(self, num_new: int, num_context: int) -> bool:
        """Whether to attend to latents.

        Args:
            num_new: New tokens of each sequence.
            num_context: Tokens that would be expanded, of all sequences.
        """
        is_less = num_new <= _MOST_NEW_TOKENS and num_context >= _LEAST_CONTEXT_TOKENS
        return is_less and self._is_alike is not False

    def attend(self, query: LatentQuery) -> torch.Tensor:
        """Return (B, T, H, E). The first answer is compared with that of the module's expansion."""
        if self._is_alike is None:
            expected = self._attend_expanded(query)
            if not self._is_usual(query):
                self._is_alike = False
            elif bool(expected.isfinite().all()):  # Other answers say nothing about the module.
                self._is_alike = _are_alike(expected, self._attend_latents(query))
            if self._is_alike is False:
                logger.info("a %s expands its latents: attending to them differs", type(self._module).__name__)
            return expected
        return self._attend_latents(query)

    def _is_usual(self, query: LatentQuery) -> bool:
        """Whether the up-projection can make of a latent, for each head, a key's first part and a value."""
        projection = getattr(self._module, "kv_b_proj", None)
        if not isinstance(projection, StrategyLinear) or projection.bias_O is not None:
            return False
        plain, value = (getattr(self._module, name, 0) for name in ("qk_nope_head_dim", "v_head_dim"))
        num_heads, width = query.q_BHTD.shape[1], query.q_BHTD.shape[-1]
        reads_latents = projection.in_features == query.latents_B1CL.shape[-1]
        is_whole = plain and value and width == plain + query.rotary_B1CR.shape[-1]
        return bool(reads_latents and is_whole and projection.out_features == num_heads * (plain + value))

    def _attend_expanded(self, query: LatentQuery) -> torch.Tensor:
        keys_BHCD, values_BHCE = self._expand(query.latents_B1CL, query.rotary_B1CR)
        mask = None if query.mask_BTC is None else query.mask_BTC[:, None]
        output = functional.scaled_dot_product_attention(
            query.q_BHTD, keys_BHCD, values_BHCE, attn_mask=mask, scale=query.scale, enable_gqa=True
        )
        return output.transpose(1, 2)

    def _attend_latents(self, query: LatentQuery) -> torch.Tensor:
        q_BHTD, mask = query.q_BHTD, query.mask_BTC
        if q_BHTD.dtype == torch.float16 and q_BHTD.device.type == "cpu":  # Its products take ten times as long.
            latents, rotary = query.latents_B1CL.float(), query.rotary_B1CR.float()
            wide = replace(query, q_BHTD=q_BHTD.float(), latents_B1CL=latents, rotary_B1CR=rotary)
            return self._attend_latents(wide).to(torch.float16)
        num_rows, num_heads, num_new, _ = q_BHTD.shape
        num_plain, width = self._module.qk_nope_head_dim, query.latents_B1CL.shape[-1]
        weight_HOL = self._weight(q_BHTD.dtype).view(num_heads, -1, width)
        latent_BHTL = _by_head(q_BHTD[..., :num_plain], weight_HOL[:, :num_plain])
        q_B1SK = torch.cat((latent_BHTL, q_BHTD[..., num_plain:]), dim=-1).reshape(num_rows, 1, num_heads * num_new, -1)
        # Values are the keys, rotated part and all: kernels want both of one width, and no copy is made.
        keys_B1CK = torch.cat((query.latents_B1CL, query.rotary_B1CR), dim=-1)
        if mask is not None:
            mask_BHTC = mask[:, None].expand(num_rows, num_heads, num_new, -1)
            mask = mask_BHTC.reshape(num_rows, 1, num_heads * num_new, -1)
        output_B1SK = functional.scaled_dot_product_attention(
            q_B1SK, keys_B1CK, keys_B1CK, attn_mask=mask, scale=query.scale
        )
        output_BHTL = output_B1SK.view(num_rows, num_heads, num_new, -1)[..., :width]
        return _by_head(output_BHTL, weight_HOL[:, num_plain:].transpose(1, 2)).transpose(1, 2)

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the up-projection (H * O, L)."""
        projection: StrategyLinear = self._module.kv_b_proj
        assert projection.strategy is not None, "attention ran before its weights were bound"
        return projection.strategy.decode(projection.parts, dtype)


def _by_head(x_BHTI: torch.Tensor, weight_HIJ: torch.Tensor) -> torch.Tensor:
    """Return (B, H, T, J), each head's rows by its own matrix."""
    num_rows, num_heads, num_new, num_inputs = x_BHTI.shape
    x_HTI = x_BHTI.transpose(0, 1).reshape(num_heads, num_rows * num_new, num_inputs)
    return (x_HTI @ weight_HIJ).view(num_heads, num_rows, num_new, -1).transpose(0, 1)


def _are_alike(expected: torch.Tensor, found: torch.Tensor) -> bool:
    expected, found = expected.float(), found.float()
    return bool((expected - found).norm() <= _TOLERANCE * expected.norm())
