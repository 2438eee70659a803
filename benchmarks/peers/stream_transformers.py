"""A transformers model whose layers are offloaded: what accelerate's and airllm's cases share."""

import torch
from transformers import DynamicCache

__all__ = ["Stepper"]


class Stepper:
    """One sequence through a model that is called as transformers' are."""

    def __init__(self, model, config):
        """Begin with an empty cache."""
        self._model = model
        self._cache = DynamicCache(config=config)

    @torch.inference_mode()
    def step(self, token_ids):
        """Decode, wanting the logits of the last token."""
        self._model(input_ids=torch.tensor([token_ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
