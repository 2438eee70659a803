"""Decides whether an architecture can run on the generic path, and refuses by name and reason otherwise.

The generic path runs transformers' own decoder layers one by one, with our linear layers, our attention behind
`AttentionInterface` and our experts behind the experts interface. What does not go through these seams would give wrong
answers or no stages at all, so it is refused at conversion, before anything is written.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from teengined.core.errors import SourceError, UnsupportedArchitecture

__all__ = ["VERIFIED_ARCHITECTURES", "check_config", "check_model", "experts_modules", "layer_list"]

# Ten times what the deepest models have: the class is built with as many layers as config.json says.
_MAX_LAYERS = 2000
# Compared with transformers token by token, whole and cut into stages, resident and streamed: what a row of
# `tests/fakes/tiny_models.py` and `make parity` hold. An architecture that no row holds may give wrong answers through
# a habit that no check here knows, so it is refused until it has one.
# fmt: off
VERIFIED_ARCHITECTURES = frozenset(
    {
        "apertus", "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma",
        "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe",
        "helium", "hunyuan_v1_dense", "llama", "minimax_m2", "ministral", "mistral", "mixtral", "nemotron", "olmo",
        "olmo2", "olmo3", "olmoe", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
        "smollm3", "starcoder2",
    }
)
# fmt: on
_ATTENTION_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "attention"})


def check_config(mapping: Mapping[str, Any]) -> None:
    """Refuse what `config.json` alone shows to be out of reach.

    Raises:
        SourceError: it names no architecture.
        UnsupportedArchitecture: custom code, encoder-decoder, vision, quantised weights.
    """
    model_type = mapping.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise SourceError("config.json names no architecture: it has no model_type")
    for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers"):
        num_layers = mapping.get(key)
        if num_layers is not None and (not isinstance(num_layers, int) or not 0 < num_layers <= _MAX_LAYERS):
            raise SourceError(f"config.json: {key} is {num_layers!r:.40}, not a number of layers up to {_MAX_LAYERS}")
    reason = ""
    if mapping.get("auto_map"):
        reason = "it needs the checkpoint's own Python code (auto_map), which is never run"
    elif mapping.get("is_encoder_decoder"):
        reason = "it is an encoder-decoder model, and only decoder-only models can be cut into stages"
    elif mapping.get("vision_config") or mapping.get("audio_config"):
        reason = "it has a vision or audio tower, and only text models are supported"
    elif mapping.get("quantization_config"):
        method = _quantization_method(mapping["quantization_config"])
        reason = f"its weights are quantised ({method}); use a bf16, fp16 or fp32 checkpoint, or a GGUF file"
    if reason:
        raise _refusal(model_type, reason)


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model (on the meta device) that does not run through the seams.

    Raises:
        UnsupportedArchitecture: names the architecture and the first reason.
    """
    reason = (
        _attention_problem(model)
        or _state_problem(model)
        or _layer_problem(model)
        or _experts_problem(model)
        or _context_problem(model)
        or _verification_problem(model)
    )
    if reason:
        raise _refusal(model.config.model_type, reason)


def layer_list(model: PreTrainedModel) -> tuple[str, int]:
    """Return the path of the one list of decoder layers, such as `model.layers`, and its length."""
    base_name = model.base_model_prefix
    base = getattr(model, base_name)
    count = model.config.get_text_config().num_hidden_layers
    names = [name for name, child in base.named_children() if isinstance(child, nn.ModuleList) and len(child) == count]
    return f"{base_name}.{names[0]}", count


def experts_modules(model: PreTrainedModel) -> dict[str, bool]:
    """Return the paths of modules of fused experts behind the experts interface, and whether they keep (I, O)."""
    return {
        name: bool(module.is_transposed)
        for name, module in model.named_modules()
        if hasattr(module, "is_transposed") and hasattr(module, "has_gate")
    }


def _attention_problem(model: PreTrainedModel) -> str:
    config = model.config
    if getattr(config, "is_decoder", True) is False and type(model).__name__.endswith("LMHeadModel"):
        return "it is an encoder (is_decoder is false)"
    layer_types = set(getattr(config, "layer_types", None) or ())
    strange = sorted(str(kind) for kind in layer_types - _ATTENTION_LAYER_TYPES)
    if strange:
        return f"its layers of type {', '.join(strange)} keep recurrent state instead of keys and values"
    if getattr(model, "_is_stateful", False):
        return "its layers keep recurrent state instead of keys and values"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' AttentionInterface"
    return ""


def _state_problem(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0):
        return "its layers share keys and values across layers (num_kv_shared_layers)"
    if getattr(config, "hidden_size_per_layer_input", 0):
        return "its layers take an input of their own beside the hidden state (hidden_size_per_layer_input)"
    if getattr(config, "index_topk", 0):
        return "its sparse attention keeps an index beside keys and values (index_topk)"
    if getattr(config, "add_cross_attention", False):
        return "it attends to an encoder (add_cross_attention)"
    return ""


def _layer_problem(model: PreTrainedModel) -> str:
    base = getattr(model, model.base_model_prefix, None)
    if not isinstance(base, nn.Module) or base is model:
        return f"it has no base model under {model.base_model_prefix!r}"
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [child for child in base.children() if isinstance(child, nn.ModuleList)]
    if len([child for child in lists if len(child) == count]) != 1 or len(lists) != 1:
        return f"its base model does not hold exactly one list of num_hidden_layers ({count}) layers"
    return ""


def _experts_problem(model: PreTrainedModel) -> str:
    experts = experts_modules(model)
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in experts and parameter.ndim in (2, 3):
            if parameter.shape[0] != getattr(model.get_submodule(owner), "num_experts", parameter.shape[0]):
                return f"{name} has no leading axis of experts"
        elif owner in experts or parameter.ndim > 2:
            return f"{name} is a {parameter.ndim}-dimensional weight outside the experts interface"
    return ""


def _context_problem(model: PreTrainedModel) -> str:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return "" if isinstance(context, int) and context > 0 else "its config.json states no max_position_embeddings"


def _verification_problem(model: PreTrainedModel) -> str:
    if model.config.model_type in VERIFIED_ARCHITECTURES:
        return ""
    return "it has not been compared with transformers yet (CONTRIBUTING.md says how to add an architecture)"


def _quantization_method(table: object) -> str:
    method = table.get("quant_method") if isinstance(table, Mapping) else None
    return str(method)[:40] if method else "method not stated"


def _refusal(model_type: str, reason: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"architecture {model_type!r:.60} cannot be converted: {reason}",
        hint="decoder-only text models such as llama, mistral, qwen3, gemma3_text, mixtral or gpt_oss can",
    )
