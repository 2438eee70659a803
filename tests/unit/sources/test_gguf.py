import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from teengined.core.errors import SourceError, UnsupportedArchitecture
from teengined_plugins.sources.gguf import GgufCheckpoint, GgufSource
from teengined_plugins.sources.gguf_config import config_mapping
from tests.fakes.converted import convert_checkpoint, read_parameters
from tests.fakes.gguf_files import GGUF_MODELS, write_gguf

UNPACKED = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def is_conv1d(model_type: str, name: str) -> bool:
    return model_type == "gpt2" and name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))


@pytest.mark.parametrize("model_type", GGUF_MODELS)
def test_every_parameter_of_a_gguf_file_is_the_original(model_type: str, tmp_path: Path) -> None:
    path, values = write_gguf(model_type, tmp_path)
    manifest = convert_checkpoint(GgufCheckpoint(path), tmp_path / "store")
    stored = read_parameters(tmp_path / "store" / "tiny", manifest)
    expected = {name: tensor.T if is_conv1d(model_type, name) else tensor for name, tensor in values.items()}
    assert manifest.architecture == model_type
    assert sorted(stored) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=2e-7 if "norm" in name else 0, msg=name)


@pytest.mark.parametrize("kind", UNPACKED)
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_every_block_type_is_unpacked_to_what_it_stands_for(model_type: str, kind: str, tmp_path: Path) -> None:
    path, values = write_gguf(model_type, tmp_path, kind=kind)
    checkpoint = GgufCheckpoint(path)
    assert kind in {tensor.dtype for tensor in checkpoint.tensors()}
    manifest = convert_checkpoint(checkpoint, tmp_path / "store")
    stored = read_parameters(tmp_path / "store" / "tiny", manifest)
    for name, tensor in values.items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_the_tokenizer_of_a_gguf_file_gives_the_same_ids(tmp_path: Path) -> None:
    path, _ = write_gguf("llama", tmp_path)
    written = set(GgufCheckpoint(path).write_tokenizer(tmp_path))
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= written
    original = Tokenizer.from_file(str(tmp_path / "source" / "tokenizer.json"))
    rebuilt = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("the layer moves", "<s>expert</s>", "naïve ☃ 42"):
        assert rebuilt.encode(text).ids == original.encode(text).ids


@pytest.mark.parametrize(
    ("model_type", "metadata", "field", "value"),
    [
        ("starcoder2", {"starcoder2.rope.freq_base": 999999.0}, "rope_theta", 999999.0),
        ("qwen3", {"qwen3.rope.freq_base": 1e6}, "rope_theta", 1e6),
        ("gemma2", {}, "query_pre_attn_scalar", 16),
        ("phi3", {"phi3.rope.dimension_count": 8}, "partial_rotary_factor", 0.5),
    ],
)
def test_what_the_file_states_overrides_the_class_defaults(
    model_type: str, metadata: dict[str, float], field: str, value: float, tmp_path: Path
) -> None:
    path, _ = write_gguf(model_type, tmp_path, metadata=metadata)
    config = GgufCheckpoint(path).config
    assert config.get(field, config.get("rope_parameters", {}).get(field)) == value


def llama_fields(**more: Any) -> dict[str, Any]:
    stated = {"context_length": 131072, "block_count": 2, "embedding_length": 64, "feed_forward_length": 96}
    heads = {"attention.head_count": 1, "attention.head_count_kv": 1, "rope.freq_base": 500000.0, "vocab_size": 10}
    own = {f"llama.{key}": value for key, value in {**stated, **heads, "rope.dimension_count": 64}.items()}
    return {"general.architecture": "llama", **own, **more}


def test_llama_3_frequency_factors_become_its_rotary_scaling() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    published = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, rope_parameters=published)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = (1 / 500000.0 ** (torch.arange(32) / 32) / scaled).tolist()
    assert config_mapping(llama_fields().get, (), factors)["rope_parameters"] == published


def test_frequency_factors_that_nobody_published_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="frequency factors"):
        config_mapping(llama_fields().get, (), [1.0 + index / 10 for index in range(32)])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"llama.expert_count": 8}, "mixture-of-experts"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
    ],
)
def test_variants_that_are_not_mapped_are_refused_by_name(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=reason):
        config_mapping(llama_fields(**changes).get, (), None)


def write_gpt_oss(path: Path) -> Path:
    """Write the head of a file as llama.cpp has gpt-oss, with one tensor of MXFP4 experts."""
    writer = gguf.GGUFWriter(path, "gpt-oss")
    stated = {"block_count": 1, "context_length": 131072, "embedding_length": 64, "feed_forward_length": 64}
    heads = {"attention.head_count": 2, "attention.head_count_kv": 1, "expert_count": 4, "expert_used_count": 2}
    for key, value in {**stated, **heads}.items():
        writer.add_uint32(f"gpt-oss.{key}", value)
    writer.add_string("gpt-oss.rope.scaling.type", "yarn")
    kind = gguf.GGMLQuantizationType.MXFP4
    blocks = gguf.quantize(np.ones((4, 64, 64), dtype=np.float32), kind)
    writer.add_tensor("blk.0.ffn_gate_exps.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gpt_oss_is_refused_by_name_and_told_what_can_be_converted(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write_gpt_oss(tmp_path / "model.gguf"))

    with pytest.raises(UnsupportedArchitecture, match="GGUF architecture 'gpt-oss' cannot be converted") as refused:
        checkpoint.tensors()

    assert "published safetensors (such as openai/gpt-oss-20b)" in refused.value.hint


def test_a_tensor_without_counterpart_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in llama_fields().items():
        if key != "general.architecture":
            writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, value)
    writer.add_tensor("blk.0.mystery.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"blk\.0\.mystery\.weight"):
        GgufCheckpoint(path).tensors()


@pytest.mark.parametrize("kept", [3, 23, 100, 5000])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    path, _ = write_gguf("llama", tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"model\.gguf"):
        GgufCheckpoint(path)


def test_a_file_cut_in_its_last_tensor_is_refused(tmp_path: Path) -> None:
    path, _ = write_gguf("llama", tmp_path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(SourceError, match="truncated"):
        GgufCheckpoint(path)


def test_other_files_are_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK" * 50)
    (tmp_path / "plain").write_bytes(b"GGUF" + bytes(40))
    assert GgufSource().matches(str(tmp_path / "x.gguf"))
    assert GgufSource().matches(str(tmp_path / "plain"))
    assert not GgufSource().matches(str(tmp_path))
    with pytest.raises(SourceError, match="not a GGUF file"):
        GgufSource().open(str(tmp_path / "x.gguf"))
    with pytest.raises(SourceError, match="cannot be opened"):
        GgufSource().open(str(tmp_path / "absent.gguf"))


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (struct.pack("<IQQ", 3, 10**9, 0), "claims 1000000000 tensors"),
        (struct.pack("<IQQQ", 3, 0, 1, 2**60), "a text claims"),
        (struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "unknown type 77"),
        (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**50), "array claims"),
        (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**20), "ends beyond the file"),
        (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "entries of the unknown type 9"),
        (struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 50), "claims 50 dimensions"),
        (struct.pack("<IQQQ1sIQQ", 3, 1, 0, 1, b"t", 2, 2**40, 2**40), "cannot be in a file of this size"),
    ],
)
def test_a_head_that_lies_is_refused_before_anything_follows_it(head: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + head + bytes(40))
    with pytest.raises(SourceError, match=problem):
        GgufCheckpoint(tmp_path / "x.gguf")


@settings(max_examples=40)
@given(st.data())
def test_no_damage_to_the_head_gets_past_as_anything_but_a_source_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    content = bytearray(intact_file())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    (directory / "x.gguf").write_bytes(content)
    try:
        checkpoint = GgufCheckpoint(directory / "x.gguf")
        for tensor in checkpoint.tensors():
            checkpoint.read(tensor.name)
    except SourceError:
        return


@cache
def intact_file() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path, _ = write_gguf("llama", Path(directory), num_hidden_layers=1)
        return path.read_bytes()
