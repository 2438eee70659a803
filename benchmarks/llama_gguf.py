"""A Llama or Mixtral in a Hugging Face directory as a GGUF file in Q8_0, so that llama.cpp can run the same weights.

The tokenizer is left out: the comparisons hand over token ids. Other precisions are made of this file by llama.cpp's
own quantiser (`benchmarks/peers/quantize_llama_cpp.py`), which gives each matrix the bits that its users' files have.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

__all__ = ["write_llama_gguf"]

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
# Routers stay as they are in llama.cpp's own files: a few rows that decide much.
_PLAIN = ("ffn_gate_inp",)
_DEFAULT_THETA = 10000.0


def write_llama_gguf(model_dir: Path, path: Path) -> Path:
    """Write `path` if it is not there; memory for one matrix, and as much again on disk meanwhile."""
    if path.is_file():
        return path
    config = json.loads((model_dir / "config.json").read_text("utf-8"))
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(str(unfinished), "llama", use_temp_file=True)
    _write_head(writer, config)
    for name, weight in _tensors(model_dir):
        place = _place_of(name)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(place.split(".")[-2])
        rows = _interleaved(weight, config[heads]) if heads else weight
        if rows.ndim == 1 or place.split(".")[-2] in _PLAIN:
            writer.add_tensor(place, rows)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(place, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _write_head(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    width, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(int(config["num_key_value_heads"]))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    rope = config.get("rope_parameters", config)
    writer.add_rope_freq_base(float(rope.get("rope_theta", _DEFAULT_THETA)))
    writer.add_rope_dimension_count(width // num_heads)
    writer.add_vocab_size(int(config["vocab_size"]))
    if "num_local_experts" in config:
        writer.add_expert_count(int(config["num_local_experts"]))
        writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("none")


def _tensors(model_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    for file in sorted(model_dir.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                for part, weight in _parts(name, tensors.get_tensor(name)):
                    yield part, weight.to(torch.float32).numpy()


def _parts(name: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return the tensor, or the two halves of stacked experts' gates and inputs, which transformers keeps together."""
    if not name.endswith("experts.gate_up_proj"):
        return [(name, weight)]
    gate, up = weight.chunk(2, dim=1)
    return [(name.replace("gate_up_proj", "gate_proj"), gate), (name.replace("gate_up_proj", "up_proj"), up)]


def _place_of(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{_NAMES['.'.join(parts[3:])]}.weight"
    return f"{_NAMES['.'.join(parts)]}.weight"


def _interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Return query or key rows in llama.cpp's order, which rotates neighbours where transformers rotates halves."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
