"""Writes tiny models as GGUF files the way llama.cpp's converter does: names, permutations, offsets, metadata."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.fakes.tiny_models import build_tiny_model

__all__ = ["GGUF_MODELS", "write_gguf"]

GGUF_MODELS = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "starcoder2": "starcoder2",
}
"""transformers' name -> the file's."""

_QUANTISED_WIDTH = 32


def write_gguf(
    model_type: str, directory: Path, *, kind: str = "F32", metadata: dict[str, Any] | None = None, **changes: Any
) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a tiny model as `model.gguf`; return the path and the values that its matrices stand for.

    `kind` is a GGUF type for matrices (whose width it fits); vectors stay F32. `metadata` adds or replaces fields,
    `changes` the model's configuration.
    """
    source = build_tiny_model(model_type, directory / "source", **changes)
    model = AutoModelForCausalLM.from_pretrained(source)
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, GGUF_MODELS[model_type])
    fields = {**_fields(model.config, GGUF_MODELS[model_type]), **(metadata or {})}
    for key, value in fields.items():
        _add_field(writer, key, value)
    _add_tokenizer(writer, source, model.config.vocab_size)
    values: dict[str, torch.Tensor] = {}
    for name, tensor in _stored(model):
        kept, values[name] = _quantised(tensor.numpy(), kind)
        for file_name, content in _in_file(model, GGUF_MODELS[model_type], name, values[name]):
            raw = gguf.quantize(content, kept) if kept is not None else content
            writer.add_tensor(file_name, raw, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def _stored(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            yield name, tensor


def _quantised(values: np.ndarray, kind: str) -> tuple[gguf.GGMLQuantizationType | None, torch.Tensor]:
    """Return the GGUF type to use and the values that survive it, which quantise to themselves."""
    kept = gguf.GGMLQuantizationType[kind]
    if values.ndim < 2 or kept is gguf.GGMLQuantizationType.F32:
        return None, torch.from_numpy(values)
    flat = values.reshape(-1, values.shape[-1])
    survived = gguf.dequantize(gguf.quantize(flat, kept), kept)
    return kept, torch.from_numpy(np.ascontiguousarray(survived.reshape(values.shape)))


def _in_file(model: Any, architecture: str, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    config, values = model.config, tensor.numpy()
    table = gguf.get_tensor_name_map(_number(architecture), config.num_hidden_layers)
    if name.endswith("experts.gate_up_proj"):
        layer = name.split(".")[2]
        gate, up = np.split(values, 2, axis=1)
        yield f"blk.{layer}.ffn_gate_exps.weight", np.ascontiguousarray(gate)
        yield f"blk.{layer}.ffn_up_exps.weight", np.ascontiguousarray(up)
        return
    if name.endswith("experts.down_proj"):
        yield f"blk.{name.split('.')[2]}.ffn_down_exps.weight", values
        return
    file_name = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert file_name is not None, name
    if architecture == "llama" and (".attn_q." in file_name or ".attn_k." in file_name):
        heads = config.num_attention_heads if ".attn_q." in file_name else config.num_key_value_heads
        values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture.startswith("gemma") and file_name.endswith("norm.weight"):
        values = values + 1
    if architecture == "gpt2" and any(part in name for part in ("c_attn.weight", "c_fc.weight", "c_proj.weight")):
        values = values.T
    yield file_name, np.ascontiguousarray(values.squeeze())


def _number(architecture: str) -> Any:
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _fields(config: Any, architecture: str) -> dict[str, Any]:
    epsilon = getattr(config, "rms_norm_eps", None)
    heads = config.num_attention_heads
    stated = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
        "attention.layer_norm_rms_epsilon": epsilon,
        "attention.layer_norm_epsilon": None if epsilon else config.to_dict().get("layer_norm_epsilon", 1e-5),
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "rope.freq_base": (getattr(config, "rope_parameters", None) or {}).get("rope_theta"),
        "rope.dimension_count": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "expert_count": getattr(config, "num_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_shared_feed_forward_length": getattr(config, "shared_expert_intermediate_size", None),
    }
    return {f"{architecture}.{key}": value for key, value in stated.items() if value is not None}


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, source: Path, vocab_size: int) -> None:
    table = json.loads((source / "tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    padding = [f"[PAD{index}]" for index in range(len(vocabulary), vocab_size)]
    writer.add_token_list([*sorted(vocabulary, key=vocabulary.__getitem__), *padding])
    special = {token["id"] for token in table["added_tokens"]}
    kinds = [3 if index in special else 1 for index in range(len(vocabulary))]
    writer.add_token_types([*kinds, *[5 for _ in padding]])
    writer.add_token_merges([" ".join(merge) for merge in table["model"]["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
