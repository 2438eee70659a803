"""Rotary frequencies that would change with the longest position of a batch, held still.

Some models (`longrope`, `dynamic`) take other frequencies for long sequences than for short ones, and transformers
decides for all rows of a batch by its longest. Here a batch holds sequences of many users, and a block of keys may be
shared by a short and a long one; so the frequencies are those of the deployment's context, for all, always.
"""

import torch
from torch import nn

__all__ = ["freeze_rotary"]


def freeze_rotary(model: nn.Module, context_tokens: int) -> None:
    """Set every rotary module of `model` to the frequencies for a context of `context_tokens`, and leave it there."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            if _changes(kinds):
                _set(module, context_tokens, {})
                module.rope_type = "default"  # type: ignore[assignment]
        elif isinstance(kinds, dict):
            changing = [layer_type for layer_type, kind in kinds.items() if _changes(kind)]
            for layer_type in changing:
                _set(module, context_tokens, {"layer_type": layer_type})
            module.rope_type = kinds | dict.fromkeys(changing, "default")  # type: ignore[assignment]


def _changes(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _set(module: nn.Module, context_tokens: int, options: dict[str, str]) -> None:
    """Let the module see the last position of the context: it keeps the frequencies that it took for it."""
    device = next(module.buffers()).device
    with torch.inference_mode():
        module(torch.zeros(1, device=device), torch.tensor([[context_tokens - 1]], device=device), **options)
