"""A Llama of chosen size with random weights, written as a Hugging Face directory: bytes to move, no sense to make.

The tokenizer is one token a byte, so that any text is a prompt.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["ONE_BILLION", "RandomLlama", "write_random_llama"]

_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLlama:
    """Sizes, under the names of transformers' configuration."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int = 4096


ONE_BILLION = RandomLlama(
    num_hidden_layers=16,
    hidden_size=2048,
    intermediate_size=8192,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=49152,
)


def write_random_llama(sizes: RandomLlama, directory: Path) -> Path:
    """Write config, tokenizer and one bf16 shard a layer into `directory`; memory for one layer only."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        **asdict(sizes),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    _write_tokenizer(directory)
    generator = torch.Generator().manual_seed(_SEED)
    shards = {f"model-{index:05d}.safetensors": shapes for index, shapes in enumerate(_shards(sizes))}
    weight_map: dict[str, str] = {}
    for file, shapes in shards.items():
        tensors = {name: _random(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return directory


def _shards(sizes: RandomLlama) -> list[dict[str, tuple[int, ...]]]:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    kv_width = width // sizes.num_attention_heads * sizes.num_key_value_heads
    layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    layers: list[dict[str, tuple[int, ...]]] = [
        {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        for number in range(sizes.num_hidden_layers)
    ]
    embedding = {"model.embed_tokens.weight": (sizes.vocab_size, width)}
    head = {"model.norm.weight": (width,), "lm_head.weight": (sizes.vocab_size, width)}
    return [embedding, *layers, head]


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(torch.bfloat16)


def _write_tokenizer(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), "utf-8"
    )
