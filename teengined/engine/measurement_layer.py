"""What a layer costs beside its products: Python, norms, rotary embedding and attention at a short context.

Measured on a real Llama of transformers so narrow that its products cost nothing: the time of one decode step with
many layers, less that with few, by the number of layers between.
"""

import statistics
import time
from typing import cast

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from teengined.interfaces.driver import Device

__all__ = ["layer_overhead_seconds"]

_FEW_LAYERS, _MANY_LAYERS = 1, 9
_CONTEXT_TOKENS = 16
_NUM_STEPS = 15


def layer_overhead_seconds(device: Device, dtype: torch.dtype) -> float:
    """Return the fixed cost of one layer at one token."""
    with torch.inference_mode():
        few, many = (_step_seconds(device, dtype, num_layers) for num_layers in (_FEW_LAYERS, _MANY_LAYERS))
    return max(0.0, (many - few) / (_MANY_LAYERS - _FEW_LAYERS))


def _step_seconds(device: Device, dtype: torch.dtype, num_layers: int) -> float:
    """Return the median time of a decode step of one token."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_hidden_layers=num_layers,
        max_position_embeddings=128,
        pad_token_id=0,
        dtype=dtype,
    )
    model = cast("nn.Module", LlamaForCausalLM(config)).eval().to(device=device.torch_device, dtype=dtype)
    cache = DynamicCache(config=config)
    prompt = torch.ones((1, _CONTEXT_TOKENS), dtype=torch.long, device=device.torch_device)
    model(input_ids=prompt, past_key_values=cache, use_cache=True)
    seconds: list[float] = []
    for _ in range(_NUM_STEPS):
        device.synchronize()
        start = time.perf_counter()
        model(input_ids=prompt[:, :1], past_key_values=cache, use_cache=True)
        device.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
