"""The cache object through which transformers' attention modules reach the KV pool during one forward pass."""

from contextvars import ContextVar

import torch
from transformers.cache_utils import Cache

from teengined.core.errors import UnsupportedArchitecture
from teengined.models.batch import StepBatch
from teengined.models.kv import LayerBlocks
from teengined.models.paged_attention import Scoring

__all__ = ["StepCache", "current_cache"]


class StepCache(Cache):
    """What the modules call `past_key_values`.

    `update` stores the new keys and values in the pool and hands them back as they are; our attention function, which
    the module calls next, reads the contexts from the pool. Shapes: (1, K, R, D) and (1, K, R, E).
    """

    def __init__(self, batch: StepBatch, *, is_strict: bool) -> None:
        """Serve the batch's sequences; `is_strict` asks attention for what neither neighbours nor chunks change."""
        super().__init__(layers=[])
        self.batch = batch
        self.is_strict = is_strict
        self.attended: tuple[LayerBlocks, Scoring] | None = None
        """What the attention that ran last read, and how; None where it made more of its blocks than they hold."""
        self._stored: tuple[torch.Tensor, torch.Tensor, LayerBlocks] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new states of a layer."""
        blocks = self.batch.pool.layer(layer_idx, key_states, value_states)
        blocks.write(self.batch.write_rows(key_states.shape[1]), key_states, value_states)
        self._stored = (key_states, value_states, blocks)
        return key_states, value_states

    def stored(self, key_states: torch.Tensor, value_states: torch.Tensor) -> LayerBlocks:
        """Return the blocks that `update` stored just these states in.

        Raises:
            UnsupportedArchitecture: the module changed them after it had stored them, so that what the pool holds is
                not what its attention means.
        """
        if self._stored is None or self._stored[0] is not key_states or self._stored[1] is not value_states:
            raise UnsupportedArchitecture("its attention changes keys or values between its cache and their use")
        return self._stored[2]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the first sequence's length before this pass; positions are always given, so none depends on it."""
        return self.batch.entries[0].start_position

    @property
    def is_sliding(self) -> list[bool]:
        """Say that no layer drops old keys: windows are applied by our attention function."""
        return [False]


# Attention is called by transformers with tensors only; this is how it learns where the sequences' contexts are.
current_cache: ContextVar[StepCache] = ContextVar("current_cache")
