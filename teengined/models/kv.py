"""Keys and values of one sequence on one stage, and the cache object through which transformers reaches them.

Shape suffixes: H key-value heads, T new tokens, C context so far, D head width (keys and values may differ).
"""

from typing import Protocol

import torch
from transformers.cache_utils import Cache

from teengined.core.errors import ContextTooLong

__all__ = ["CacheEntry", "SequenceKV", "StepCache"]


class CacheEntry(Protocol):
    """The part of a batch entry that a cache needs."""

    @property
    def kv(self) -> "SequenceKV":
        """Where this sequence's keys and values are."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many new tokens it has."""
        ...

    @property
    def start_position(self) -> int:
        """The position of the first of them."""
        ...


class SequenceKV:
    """Buffers of the full promised context for each layer, made on a layer's first use.

    On a CPU the pages that no token has reached are never touched, so a short answer costs little of a long promise.
    """

    def __init__(self, *, context_tokens: int) -> None:
        """Promise room for `context_tokens` tokens."""
        self._context_tokens = context_tokens
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def append(
        self, layer: int, position: int, keys_1HTD: torch.Tensor, values_1HTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values at `position` and return views of all up to them: (1, H, C, D) each.

        Raises:
            ContextTooLong: the tokens would lie beyond the promised context.
        """
        end = position + keys_1HTD.shape[2]
        if end > self._context_tokens:
            raise ContextTooLong(f"position {end} is beyond the {self._context_tokens} tokens this sequence was given")
        if layer not in self._layers:
            self._layers[layer] = (self._buffer_like(keys_1HTD), self._buffer_like(values_1HTD))
        keys, values = self._layers[layer]
        keys[:, :, position:end] = keys_1HTD
        values[:, :, position:end] = values_1HTD
        return keys[:, :, :end], values[:, :, :end]

    def _buffer_like(self, states_1HTD: torch.Tensor) -> torch.Tensor:
        _, num_heads, _, width = states_1HTD.shape
        return states_1HTD.new_empty(1, num_heads, self._context_tokens, width)


class StepCache(Cache):
    """What transformers' attention modules call `past_key_values` during one forward pass.

    `update` returns the contexts of all sequences one after another along the token axis; our attention function
    splits them again by the batch's lengths. One sequence, the common case of a lone stream, is passed on as a view.
    """

    def __init__(self, entries: tuple[CacheEntry, ...]) -> None:
        """Serve the given sequences, in the order of their tokens."""
        super().__init__(layers=[])
        self._entries = entries

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new states of a layer and return every sequence's context: (1, H, sum of C, D) each."""
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        counts = [entry.num_tokens for entry in self._entries]
        splits = zip(key_states.split(counts, dim=2), value_states.split(counts, dim=2), strict=True)
        for entry, (new_keys, new_values) in zip(self._entries, splits, strict=True):
            all_keys, all_values = entry.kv.append(layer_idx, entry.start_position, new_keys, new_values)
            keys.append(all_keys)
            values.append(all_values)
        if len(keys) == 1:
            return keys[0], values[0]
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the first sequence's length before this pass; positions are always given, so none depends on it."""
        return self._entries[0].start_position

    @property
    def is_sliding(self) -> list[bool]:
        """Say that no layer drops old keys: windows are applied by our attention function."""
        return [False]
