"""Tiny random models of many architectures, saved as Hugging Face does, with a tiny tokenizer beside them.

Small enough that a test builds one in a fraction of a second, and shaped so that every size differs where the
architecture lets it: a swapped axis shows.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["TINY_ARCHITECTURES", "TINY_VOCABULARY", "build_tiny_model", "tiny_config"]

TINY_VOCABULARY = 320

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": TINY_VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROUTED: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}

_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 2},
    "phi3": {},
    "gpt2": {"n_positions": 256},
    "gpt_neox": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 6, **_ROUTED},
    "deepseek_v3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 24,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16},
    "glm4_moe": {"n_routed_experts": 6, "first_k_dense_replace": 1, **_ROUTED},
    "qwen2_moe": {"num_experts": 6, "shared_expert_intermediate_size": 48, **_ROUTED},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "starcoder2": {},
    "phi": {},
    "cohere2": {"sliding_window": 16},
    "granite": {},
    "smollm3": {},
    "apertus": {},
    "arcee": {"head_dim": 16},
    "cohere": {},
    "deepseek_v2": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "ernie4_5": {"head_dim": 16},
    "exaone4": {"sliding_window": 16},
    "gemma": {"head_dim": 16},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "rotary_dim": 8},
    "ministral": {"head_dim": 16, "sliding_window": 16},
    "nemotron": {},
    "olmo": {},
    "olmo3": {"sliding_window": 16},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "seed_oss": {"head_dim": 16},
}

TINY_ARCHITECTURES: tuple[str, ...] = tuple(_EXTRA)


def tiny_config(architecture: str, **changes: Any) -> Any:
    """Return the configuration that `build_tiny_model` uses, with `changes`."""
    extra = _EXTRA[architecture]
    return AutoConfig.for_model(architecture, **{**_SMALL, **extra, **changes})


def build_tiny_model(
    architecture: str, directory: Path, seed: int = 0, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Save a random model of `architecture` with a tokenizer into `directory`, and return that.

    `changes` overwrite fields of the configuration. The same seed gives the same weights.
    """
    config = tiny_config(architecture, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        _randomise(model)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    write_tiny_tokenizer(directory)
    return directory


def _randomise(model: Any) -> None:
    """Give every value its own: freshly made norms are all ones and biases all zeros, where a mix-up would not show."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.05)


def write_tiny_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and its companions: a byte-level BPE of 320 tokens with a chat template."""
    (directory / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the layer moves to where it is computed and the expert follows the token " * 4] * 8
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer.to_str()
