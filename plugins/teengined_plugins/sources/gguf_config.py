"""The transformers configuration that a GGUF file's metadata stand for.

transformers' own table covers most fields; what it leaves to class defaults although the file states it is added here,
and what cannot be expressed is refused, so that no model runs with a wrong rotary base or attention scale.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from teengined.core.errors import SourceError, UnsupportedArchitecture

__all__ = ["ARCHITECTURES", "config_mapping"]

ARCHITECTURES = (
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "starcoder2",
)
"""GGUF architectures whose values and metadata are mapped completely, each held to the original in a test."""

_OTHER_FORMS = {
    "gpt-oss": "use the published safetensors (such as openai/gpt-oss-20b), whose MXFP4 experts can be converted; a "
    "GGUF file keeps these blocks but not the tokenizer's rules of splitting text",
}
"""What to use instead, where a GGUF file lacks something."""

_MODEL_TYPES = {"gemma3": "gemma3_text", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
"""transformers' names where they differ."""

_RENAMED = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
# Ten times what the deepest models have; tables of names are made for every layer.
_MAX_LAYERS = 2000
# The two 27B models divide attention scores by sqrt(width / heads), all others by sqrt(head size); the file does not
# say, so llama.cpp goes by the number of layers, and so does this.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
# What Llama 3.1 to 3.3 were published with; GGUF files keep only the frequency factors that follow from it.
_LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT_TOKENS = 8192


def config_mapping(
    metadata: Callable[[str], Any], tensor_names: Collection[str], rope_factors: list[float] | None
) -> dict[str, Any]:
    """Return the file's configuration as `config.json` would have it.

    Args:
        metadata: looks a key of the file up; None where it is absent.
        tensor_names: GGUF names of the file's tensors.
        rope_factors: the values of `rope_freqs.weight`, where the file has that tensor.

    Raises:
        UnsupportedArchitecture: an architecture, or a variant of one, that is not mapped.
        SourceError: the metadata do not make a configuration.
    """
    architecture = metadata("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"GGUF architecture {architecture!r:.60} cannot be converted",
            hint=_OTHER_FORMS.get(
                architecture, f"these can: {', '.join(ARCHITECTURES)}; for others use the model's safetensors files"
            ),
        )
    if architecture == "llama" and metadata("llama.expert_count"):
        raise UnsupportedArchitecture(
            "GGUF files of mixture-of-experts llama models cannot be converted",
            hint="use the model's safetensors files",
        )
    num_layers = metadata(f"{architecture}.block_count")
    if not isinstance(num_layers, int) or not 0 < num_layers <= _MAX_LAYERS:
        raise SourceError(f"its metadata claim {num_layers!r:.40} layers ({architecture}.block_count)")
    try:
        config = _stated(architecture, metadata)
        config["tie_word_embeddings"] = "output.weight" not in tensor_names
        _add_attention_scale(config, architecture)
        _add_partial_rotary(config, architecture, metadata)
        _add_rope_scaling(config, architecture, metadata, rope_factors)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise SourceError(f"its metadata make no {architecture} configuration: {error!r:.200}") from error
    return _as_config_json(_MODEL_TYPES.get(architecture, architecture), config)


def _stated(architecture: str, metadata: Callable[[str], Any]) -> dict[str, Any]:
    """Return what the file states, under transformers' names."""
    from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING

    table = "gemma3" if architecture == "gemma3" else _MODEL_TYPES.get(architecture, architecture)
    config: dict[str, Any] = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(table, {}))
    for key, field in {**GGUF_CONFIG_MAPPING[table], **_RENAMED}.items():
        value = metadata(f"{architecture}.{key}")
        if field is not None and value is not None:
            config[field] = value
    for key, field in GGUF_CONFIG_MAPPING["tokenizer"].items():
        if field is not None and (value := metadata(f"tokenizer.{key}")) is not None:
            config[field] = value
    if "vocab_size" not in config:
        config["vocab_size"] = len(metadata("tokenizer.ggml.tokens") or ())
    if architecture == "gpt2":
        config["n_positions"] = config.pop("n_ctx", None)
    return config


def _add_attention_scale(config: dict[str, Any], architecture: str) -> None:
    if architecture not in _LAYERS_OF_27B:
        return
    large = config["num_hidden_layers"] == _LAYERS_OF_27B[architecture]
    by_width = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = by_width if large else config["head_dim"]


def _add_partial_rotary(config: dict[str, Any], architecture: str, metadata: Callable[[str], Any]) -> None:
    rotary = metadata(f"{architecture}.rope.dimension_count")
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // max(config.get("num_attention_heads", 1), 1)
    if architecture == "phi3" and rotary and rotary != head_dim:
        config["partial_rotary_factor"] = rotary / head_dim


def _add_rope_scaling(
    config: dict[str, Any], architecture: str, metadata: Callable[[str], Any], rope_factors: list[float] | None
) -> None:
    kind = metadata(f"{architecture}.rope.scaling.type")
    if kind not in (None, "none"):
        raise UnsupportedArchitecture(
            f"GGUF files with rotary scaling {kind!r:.40} cannot be converted", hint="use the model's safetensors files"
        )
    if rope_factors is None or all(factor == 1 for factor in rope_factors):
        return
    scaling = {
        **_LLAMA3_ROPE,
        "factor": max(rope_factors),
        "original_max_position_embeddings": _LLAMA3_CONTEXT_TOKENS,
    }
    expected = _llama3_factors(scaling, config.get("rope_theta", 10000.0), len(rope_factors))
    if any(not math.isclose(one, other, rel_tol=1e-3) for one, other in zip(rope_factors, expected, strict=True)):
        raise UnsupportedArchitecture(
            "its rotary frequency factors (rope_freqs.weight) are not those of Llama 3",
            hint="use the model's safetensors files",
        )
    config["rope_scaling"] = scaling


def _llama3_factors(scaling: Mapping[str, Any], theta: float, count: int) -> list[float]:
    """Return by how much each rotary frequency is divided.

    Source: `_compute_llama3_parameters` of transformers/modeling_rope_utils.py.
    """
    context = scaling["original_max_position_embeddings"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    factors: list[float] = []
    for index in range(count):
        wavelength = 2 * math.pi * theta ** (index / count)
        smooth = (context / wavelength - low) / (high - low)
        divided = 1 / ((1 - smooth) / factor + smooth)
        factors.append(factor if wavelength > context / low else 1.0 if wavelength < context / high else divided)
    return factors


def _as_config_json(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        built = AutoConfig.for_model(model_type, **config)
    except Exception as error:  # transformers' validators raise classes of their own
        problem = " ".join(str(error).split())
        raise SourceError(f"its metadata make no {model_type} configuration: {problem:.200}") from error
    return {"model_type": model_type, **built.to_dict()}
