"""A Llama of chosen size with random weights, written as a Hugging Face directory: bytes to move, no sense to make."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.random_checkpoint import CONFIG, Shapes, attention_shapes, random_matrix, write_checkpoint

__all__ = ["ONE_BILLION", "THREE_BILLION", "RandomLlama", "write_random_llama"]


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
# Layers no larger than those of the billion: what an engine must hold of a layer at a time is the same, and a quarter
# of the model still holds that and the libraries.
THREE_BILLION = RandomLlama(
    num_hidden_layers=48,
    hidden_size=2048,
    intermediate_size=8192,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=49152,
)


def write_random_llama(sizes: RandomLlama, directory: Path) -> Path:
    """Write config, tokenizer and one bf16 shard a module into `directory`; memory for one layer only."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **CONFIG,
        **asdict(sizes),
    }
    return write_checkpoint(config, _shards(sizes), directory, _draw)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return random_matrix(shape, generator)


def _shards(sizes: RandomLlama) -> list[Shapes]:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    layer = {
        **attention_shapes(width, width // sizes.num_attention_heads * sizes.num_key_value_heads),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    layers: list[Shapes] = [
        {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        for number in range(sizes.num_hidden_layers)
    ]
    embedding = {"model.embed_tokens.weight": (sizes.vocab_size, width)}
    norm, head = {"model.norm.weight": (width,)}, {"lm_head.weight": (sizes.vocab_size, width)}
    return [embedding, *layers, norm, head]
