"""The GGUF file of a mixture holds the checkpoint's own weights, under the names that llama.cpp looks for."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

from benchmarks.llama_gguf import write_llama_gguf
from benchmarks.random_mixture import RandomMixture, write_random_mixture

SIZES = RandomMixture(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=32,
    num_local_experts=4,
    num_experts_per_tok=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=96,
)


@pytest.fixture(name="model_dir")
def model_dir_fixture(tmp_path: Path) -> Path:
    return write_random_mixture(SIZES, tmp_path / "mixture")


def test_stacked_gates_and_inputs_of_experts_are_told_apart(model_dir: Path, tmp_path: Path) -> None:
    path = write_llama_gguf(model_dir, tmp_path / "mixture-q8_0.gguf")

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    stacked = load_file(model_dir / "model-00003-of-00005.safetensors")["model.layers.1.mlp.experts.gate_up_proj"]
    gate, up = (half.float().numpy() for half in stacked.chunk(2, dim=1))
    for name, half in (("gate", gate), ("up", up)):
        stored = tensors[f"blk.1.ffn_{name}_exps.weight"]
        values = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(half.shape)
        assert np.abs(values - half).max() < np.abs(half).max() / 100


def test_router_is_stored_as_it_is(model_dir: Path, tmp_path: Path) -> None:
    path = write_llama_gguf(model_dir, tmp_path / "mixture-q8_0.gguf")

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_file_tells_how_many_experts_there_are(model_dir: Path, tmp_path: Path) -> None:
    fields = gguf.GGUFReader(write_llama_gguf(model_dir, tmp_path / "mixture-q8_0.gguf")).fields

    assert [int(fields[f"llama.expert_{name}"].contents()) for name in ("count", "used_count")] == [4, 2]
