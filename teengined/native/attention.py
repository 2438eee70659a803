"""Attention of one token a sequence over paged keys and values, in C: see attention.c for its order of sums."""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from teengined.native.library import AttentionCall, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_WIDTH", "LogitOptions", "PagedContext", "has_attention", "paged_attention"]

# Of a head's keys and values, as in attention.c.
MAX_WIDTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedContext:
    """Keys and values of one layer, and which of them each row of a query sees. All on the CPU and contiguous.

    Legend: N blocks, K key-value heads, T tokens of a block, D width of a key, E width of a value, B rows, M blocks.
    """

    keys: "torch.Tensor"
    """(N, K, T, D) in fp32, bf16 or int8."""
    values: "torch.Tensor"
    """(N, K, T, E)."""
    tables: "torch.Tensor"
    """(B, M) int32 block ids."""
    lengths: "torch.Tensor"
    """(B,) int32: tokens that a row sees, its own included; at least 1."""
    key_scales: "torch.Tensor | None" = None
    """(N, K, T) fp32, where keys and values are int8."""
    value_scales: "torch.Tensor | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitOptions:
    """How queries and keys become weights."""

    scale: float
    """Factor of the logits."""
    window: int = 0
    """Only the last so many tokens are seen; 0: all."""
    softcap: float = 0.0
    """Logits become `softcap * tanh(logit / softcap)`; 0: as they are."""
    sinks: "torch.Tensor | None" = None
    """(H,) fp32: one more logit for each head, whose weight goes nowhere."""


def has_attention() -> bool:
    """Say whether the kernel is there: a compiler, and a processor with AVX-512."""
    library = kernel_library()
    return library is not None and library.has_attention


def paged_attention(q_BHD: "torch.Tensor", context: PagedContext, options: LogitOptions) -> "torch.Tensor":
    """Return (B, H, E) in the dtype of `q`: for each row the weighted sum of the values it sees.

    `q` is contiguous, fp32 or bf16, its width at most `MAX_WIDTH`, its heads a multiple of the key-value heads. Needs
    `has_attention()`.
    """
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    num_rows, num_heads, key_width = q_BHD.shape
    _, num_kv_heads, block_tokens, value_width = context.values.shape
    # The kernel would read past its arrays.
    assert num_heads % num_kv_heads == 0, f"{num_heads} heads over {num_kv_heads} key-value heads"
    assert bool((context.lengths >= 1).all()), "a row sees at least itself"
    out_BHE = torch.empty((num_rows, num_heads, value_width), dtype=q_BHD.dtype)
    codes = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
    call = AttentionCall(
        q_BHD.data_ptr(), context.keys.data_ptr(), context.values.data_ptr(),
        _pointer(context.key_scales), _pointer(context.value_scales), context.tables.data_ptr(),
        context.lengths.data_ptr(), _pointer(options.sinks), out_BHE.data_ptr(), num_rows, num_heads, num_kv_heads,
        key_width, value_width, block_tokens, context.tables.stride(0), options.window, codes[q_BHD.dtype],
        codes[context.keys.dtype], torch.get_num_threads(), options.scale, options.softcap,
    )  # fmt: skip
    library.run_attention(ctypes.byref(call))
    return out_BHE


def _pointer(tensor: "torch.Tensor | None") -> int | None:
    return None if tensor is None else tensor.data_ptr()
