"""How many numbers one token leaves in the cache of a layer: what planning needs to know about attention."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from teengined.modelpack.support import layer_list

__all__ = ["kv_elements"]

_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")


def kv_elements(model: PreTrainedModel, layer: int) -> int:
    """Return the numbers that one token leaves in the cache of `layer`, keys and values together.

    Multi-head latent attention, as transformers caches it, keeps the compressed latent and the rotary part of the key,
    once for all heads. All others keep their projected keys and values, whose widths the projections themselves tell.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None) and getattr(config, "qk_rope_head_dim", None):
        return config.kv_lora_rank + config.qk_rope_head_dim
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    prefix, _ = layer_list(model)
    widths = _output_widths(model.get_submodule(f"{prefix}.{layer}"))
    if "k_proj" in widths and "v_proj" in widths:
        return widths["k_proj"] + widths["v_proj"]
    for name in _FUSED:
        if name in widths:
            return widths[name] - heads * head_dim
    return 2 * head_dim * (getattr(config, "num_key_value_heads", None) or heads)


def _output_widths(layer: nn.Module) -> Mapping[str, int]:
    widths: dict[str, int] = {}
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            widths[path.rpartition(".")[2]] = module.out_features
        elif isinstance(module, Conv1D):
            widths[path.rpartition(".")[2]] = module.nf
    return widths
