"""Shapes of published models, for packages without a checkpoint: what `synth --like` knows. Figures only, pure."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from teengined.core.errors import RequestError

__all__ = ["EXPERT_COUNTS", "KNOWN_SHAPES", "SCALING_KEYS", "config_like"]

EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
"""Keys that say how many routed experts a layer has, as the configurations of transformers spell it."""

SCALING_KEYS = ("num_hidden_layers", "num_experts_per_tok", "n_group", "topk_group", *EXPERT_COUNTS)
"""Keys of a configuration that decide which other sizes the model may have."""

_MAX_CONFIG_BYTES = 1 << 20

_LATENT_ATTENTION: Mapping[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False,
}

KNOWN_SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "kimi-k2": {
            **_LATENT_ATTENTION,
            "n_routed_experts": 384,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "first_k_dense_replace": 1,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "vocab_size": 163840,
            "max_position_embeddings": 131072,
            "rope_theta": 50000.0,
            "rms_norm_eps": 1e-6,
        },
        "deepseek-v3": {
            **_LATENT_ATTENTION,
            "n_routed_experts": 256,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 3,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "vocab_size": 129280,
            "max_position_embeddings": 163840,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
        },
        "qwen3-moe-30b": {
            "model_type": "qwen3_moe",
            "num_hidden_layers": 48,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        },
        "mixtral-8x7b": {
            "model_type": "mixtral",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
        },
        "llama-1b": {
            "model_type": "llama",
            "num_hidden_layers": 16,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        "llama-8b": {
            "model_type": "llama",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
        "llama-70b": {
            "model_type": "llama",
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
    }
)


def config_like(reference: str) -> dict[str, Any]:
    """Return the configuration of a known shape, or of a `config.json` (or a directory that has one).

    Raises:
        RequestError: neither; the hint lists what is known.
    """
    if reference in KNOWN_SHAPES:
        return dict(KNOWN_SHAPES[reference])
    path = Path(reference).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        near = difflib.get_close_matches(reference, KNOWN_SHAPES, n=1)
        start = f"did you mean {near[0]}? " if near else ""
        raise RequestError(
            f"no shape named {reference!r:.80} is known, and it is no config.json",
            hint=f"{start}there are: {', '.join(KNOWN_SHAPES)}",
        )
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise RequestError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes, which no config.json is")
        table: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{path} cannot be read: {error!s:.200}",
            hint=f"it must be JSON; or name a shape: {', '.join(KNOWN_SHAPES)}",
        ) from error
    if not isinstance(table, dict):
        raise RequestError(f"{path} is not a JSON object")
    return cast("dict[str, Any]", table)
