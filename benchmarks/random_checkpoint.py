"""Hugging Face directories with random weights, for models to move and not to talk to: one shard a module, in bf16.

A module for each shard lets engines that keep a file for each layer link to these instead of copying them. The
tokenizer is one token a byte, so that any text is a prompt.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["CONFIG", "Draw", "Shapes", "attention_shapes", "random_matrix", "write_checkpoint"]

Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors and their shapes."""
Draw = Callable[[str, tuple[int, ...], torch.Generator], torch.Tensor]
"""Makes the tensor of that name and shape."""

CONFIG: Mapping[str, object] = {
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
"""What stands in the configuration of all such models."""

_SEED = 20


def write_checkpoint(config: Mapping[str, Any], shards: Sequence[Shapes], directory: Path, draw: Draw) -> Path:
    """Write config, tokenizer and shards into `directory`; memory for one shard only. The index comes last."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    _write_tokenizer(directory)
    generator = torch.Generator().manual_seed(_SEED)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: draw(name, shape, generator) for name, shape in shapes.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return directory


def random_matrix(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return ones for a vector; for a matrix, or a stack of them, values that keep the scale of what they multiply."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(torch.bfloat16)


def attention_shapes(width: int, kv_width: int) -> dict[str, tuple[int, ...]]:
    """Return the matrices of grouped-query attention, and the norms of a layer."""
    return {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (kv_width, width),
        "self_attn.v_proj.weight": (kv_width, width),
        "self_attn.o_proj.weight": (width, width),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }


def _write_tokenizer(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), "utf-8"
    )
