"""Conversion end to end: what stands in a package is what transformers would have loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from teengined.core.errors import UnsupportedArchitecture
from teengined.core.model import UnitKind
from teengined.modelpack.layout import PADDING_PREFIX
from teengined.modelpack.verify import verify_package
from tests.fakes.converted import convert_directory, read_parameters
from tests.fakes.tiny_models import TINY_ARCHITECTURES, build_tiny_model

FUSED_EXPERTS = ("gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe", "qwen2_moe", "olmoe")


def expected_parameters(directory: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What transformers loads, with the orientation that packages store: (O, I) throughout."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    expected = dict(model.state_dict())
    for path, module in model.named_modules():
        if isinstance(module, Conv1D):
            expected[f"{path}.weight"] = expected[f"{path}.weight"].T
        if getattr(module, "is_transposed", False):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    expected[f"{path}.{name}"] = expected[f"{path}.{name}"].transpose(1, 2)
    for target in model.all_tied_weights_keys:
        del expected[target]
    return expected


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_every_stored_parameter_is_what_transformers_loads(architecture: str, tmp_path: Path) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store")
    stored = read_parameters(tmp_path / "store" / "tiny", manifest)
    expected = expected_parameters(source, torch.float32)
    assert sorted(stored) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(stored[name], tensor), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_the_same_rounding_as_transformers(architecture: str, precision: str, tmp_path: Path) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store", precision=precision)
    stored = read_parameters(tmp_path / "store" / "tiny", manifest)
    expected = expected_parameters(source, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    for name, tensor in expected.items():
        assert torch.equal(stored[name], tensor.float()), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "qwen3_moe"])
def test_int8_stays_within_half_a_step_of_its_scale(architecture: str, tmp_path: Path) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store", precision="int8", compute_dtype="fp32")
    stored = read_parameters(tmp_path / "store" / "tiny", manifest)
    for name, tensor in expected_parameters(source, torch.float32).items():
        step = tensor.abs().amax(-1, keepdim=True) / 127 if tensor.ndim > 1 else torch.zeros(())
        assert torch.all((stored[name] - tensor).abs() <= 0.51 * step + 1e-7), name


@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_each_expert_is_a_unit_of_its_own_and_they_follow_their_layer(architecture: str, tmp_path: Path) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store")
    layers = [manifest.units_of_layer(layer) for layer in range(manifest.num_layers)]
    routed = [units for units in layers if len(units) > 1]
    assert routed
    for units in routed:
        assert units[0].kind is UnitKind.LAYER
        assert [unit.expert for unit in units[1:]] == list(range(manifest.num_experts))
        assert len({unit.size_bytes for unit in units[1:]}) == 1
        assert len({unit.file for unit in units}) == 1


def test_files_are_valid_safetensors_without_holes_and_aligned(tmp_path: Path) -> None:
    source = build_tiny_model("qwen3_moe", tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store", precision="int8")
    for unit in manifest.units:
        assert unit.offset_bytes % 4096 == 0
        assert unit.size_bytes % 4096 == 0
        assert all((unit.offset_bytes + tensor.offset_bytes) % 64 == 0 for tensor in unit.tensors)
    for path in sorted((tmp_path / "store" / "tiny" / "units").iterdir()):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not name.startswith(PADDING_PREFIX)]  # noqa: SIM118
        in_manifest = [tensor for unit in manifest.units if unit.file.endswith(path.name) for tensor in unit.tensors]
        assert len(names) == len(in_manifest)


def test_a_unit_read_as_one_range_holds_its_tensors_where_the_manifest_says(tmp_path: Path) -> None:
    source = build_tiny_model("mixtral", tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store")
    expected = expected_parameters(source, torch.float32)
    for unit in manifest.units:
        content = (tmp_path / "store" / "tiny" / unit.file).read_bytes()[unit.offset_bytes :][: unit.size_bytes]
        for tensor in unit.tensors:
            raw = bytearray(content[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes])
            value = torch.frombuffer(raw, dtype=torch.float32).reshape(tensor.shape)
            whole = expected[tensor.parameter]
            assert torch.equal(value, whole if unit.expert is None else whole[unit.expert])


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_kv_elements_are_what_a_real_cache_keeps(architecture: str, tmp_path: Path) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store")
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    with torch.no_grad():
        cache = model(torch.ones(1, 1, dtype=torch.long), use_cache=True).past_key_values
    kept = tuple(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert manifest.kv_elements_per_token == kept


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe", "gemma2"])
def test_a_package_directory_opens_as_a_transformers_configuration_and_tokenizer(
    architecture: str, tmp_path: Path
) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    manifest = convert_directory(source, tmp_path / "store", name="org/some.name-1")
    package = tmp_path / "store" / "org--some.name-1"
    config = AutoConfig.from_pretrained(package)
    assert (config.model_type, config.vocab_size) == (manifest.architecture, manifest.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(package)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "the layer"}], tokenize=False)
    assert chat == "user: the layer\nassistant:"
    assert manifest.eos_token_ids == (2,)
    assert verify_package(package) == manifest


def test_tied_weights_that_differ_in_the_checkpoint_are_kept_apart(tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "source", tie_word_embeddings=False)
    text = (source / "config.json").read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    (source / "config.json").write_text(text)
    manifest = convert_directory(source, tmp_path / "store")
    assert manifest.tied_parameters == {}
    assert "lm_head.weight" in {tensor.parameter for tensor in manifest.units[-1].tensors}
    assert AutoConfig.from_pretrained(tmp_path / "store" / "tiny").tie_word_embeddings is False
    assert any("kept apart" in note for note in manifest.numeric_notes)


@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
def test_a_sharded_checkpoint_converts_like_a_single_file(architecture: str, tmp_path: Path) -> None:
    source = build_tiny_model(architecture, tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="100KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    manifest = convert_directory(source, tmp_path / "store")
    stored = read_parameters(tmp_path / "store" / "tiny", manifest)
    for name, tensor in expected_parameters(source, torch.float32).items():
        assert torch.equal(stored[name], tensor), name


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mamba"}, "recurrent state"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "kimi_linear"}, "linear_attention"),
        ({"model_type": "qwen3_next"}, "linear_attention"),
        ({"model_type": "bloom"}, "AttentionInterface"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "no_such_thing"}, "not known"),
        ({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"model_type": "llama", "vision_config": {"a": 1}}, "vision"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
        ({"model_type": "gemma3"}, "vision"),
        ({"model_type": "opt"}, "list of num_hidden_layers"),
    ],
)
def test_what_the_generic_path_cannot_run_is_refused_by_name_and_reason(
    config: dict[str, object], reason: str, tmp_path: Path
) -> None:
    source = build_tiny_model("llama", tmp_path / "source")
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitecture) as refused:
        convert_directory(source, tmp_path / "store")
    assert str(config["model_type"]) in refused.value.message
    assert reason in refused.value.message
    assert list((tmp_path / "store").iterdir()) == []
