"""A quantised checkpoint gives the package that the values it stands for give, byte for byte."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from teengined.core.errors import SourceError, UnsupportedArchitecture
from teengined_plugins.sources.hf_directory import DirectoryCheckpoint
from tests.fakes.converted import convert_directory
from tests.fakes.quantised_files import FORMS, quantise_directory
from tests.fakes.tiny_models import build_tiny_model


def is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")


def build(directory: Path, form: str, architecture: str = "llama") -> tuple[Path, Path]:
    """Return a quantised checkpoint and a plain one of the same values."""
    plain = build_tiny_model(architecture, directory / "plain", num_hidden_layers=2)
    return quantise_directory(plain, directory / "quantised", FORMS[form], is_projection), plain


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_package_of_its_values(form: str, tmp_path: Path) -> None:
    quantised, plain = build(tmp_path, form)

    made = convert_directory(quantised, tmp_path / "made")
    expected = convert_directory(plain, tmp_path / "expected")

    assert {unit.id: unit.digest for unit in made.units} == {unit.id: unit.digest for unit in expected.units}
    assert "quantization_config" not in json.loads((tmp_path / "made" / "tiny" / "config.json").read_text())


@pytest.mark.parametrize(("architecture", "form"), [("deepseek_v3", "fp8-blocks"), ("qwen3_moe", "compressed-int4")])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_experts_and_other_precisions_follow(architecture: str, form: str, precision: str, tmp_path: Path) -> None:
    quantised, plain = build(tmp_path, form, architecture)

    made = convert_directory(quantised, tmp_path / "made", precision=precision)
    expected = convert_directory(plain, tmp_path / "expected", precision=precision)

    assert {unit.id: unit.digest for unit in made.units} == {unit.id: unit.digest for unit in expected.units}


def configured(directory: Path, **settings: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {**config["quantization_config"], **settings}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("form", "settings", "problem"),
    [
        ("awq", {"version": "gemv"}, r"awq .*gemv"),
        ("awq", {"bits": 8}, r"awq .*8 bits"),
        ("gptq", {"bits": 3}, r"gptq .*3 bits"),
        ("gptq", {"checkpoint_format": "marlin"}, r"gptq .*marlin"),
        ("modelopt-fp8", {"quant_algo": "W4A8_AWQ"}, r"modelopt .*W4A8_AWQ"),
        ("compressed-int4", {"format": "marlin-24"}, r"compressed-tensors .*marlin-24"),
        ("compressed-int8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"compressed-tensors .*sparse-24"),
        ("compressed-fp8-rows", {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
    ],
)
def test_a_variation_that_is_not_read_is_refused_by_name_with_what_to_use(
    form: str, settings: dict[str, object], problem: str, tmp_path: Path
) -> None:
    quantised, _ = build(tmp_path, form)
    configured(quantised, **settings)

    with pytest.raises(SourceError, match=problem) as refused:
        DirectoryCheckpoint(quantised, "x")
    assert "bf16" in refused.value.hint


@pytest.mark.parametrize("method", ["aqlm", "hqq", "quanto", "torchao", "bitnet", "", None, 7])
def test_a_method_that_is_not_read_is_refused_by_name(method: object, tmp_path: Path) -> None:
    quantised, _ = build(tmp_path, "gptq")
    configured(quantised, quant_method=method)

    with pytest.raises(UnsupportedArchitecture, match="quantised") as refused:
        convert_directory(quantised, tmp_path / "store")
    assert str(method or "not stated") in refused.value.message


def without(directory: Path, suffix: str) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.endswith(suffix)}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("fp8-blocks", "_scale_inv"),
        ("compressed-fp8-rows", ".weight_scale"),
        ("compressed-int8", ".weight_scale"),
        ("compressed-int4", ".weight_scale"),
        ("compressed-int4", ".weight_shape"),
        ("compressed-nvfp4", ".weight_scale"),
        ("modelopt-nvfp4", ".weight_scale"),
        ("modelopt-nvfp4", ".weight_scale_2"),
        ("gptq", ".scales"),
        ("gptq", ".qzeros"),
        ("awq", ".scales"),
        ("nf4", ".absmax"),
        ("nf4", ".quant_map"),
        ("nf4", "bitsandbytes__nf4"),
        ("bnb-int8", ".SCB"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_never_taken_for_values(form: str, suffix: str, tmp_path: Path) -> None:
    quantised, _ = build(tmp_path, form)
    without(quantised, suffix)

    with pytest.raises(SourceError, match="_proj"):
        convert_directory(quantised, tmp_path / "store")


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("fp8-blocks", "_scale_inv"),
        ("compressed-int4-zeros", ".weight_scale"),
        ("compressed-int4-order", ".weight_g_idx"),
        ("compressed-nvfp4", ".weight_scale"),
        ("gptq", ".scales"),
        ("gptq", ".qzeros"),
        ("gptq", ".g_idx"),
        ("awq", ".scales"),
        ("nf4", ".absmax"),
        ("nf4-nested", ".nested_absmax"),
        ("bnb-int8", ".SCB"),
    ],
)
def test_parts_of_another_shape_get_an_error_that_names_the_tensor(form: str, suffix: str, tmp_path: Path) -> None:
    quantised, _ = build(tmp_path, form)
    tensors = load_file(quantised / "model.safetensors")
    for name in [name for name in tensors if name.endswith(suffix)]:
        tensors[name] = torch.zeros(0, dtype=tensors[name].dtype)
    save_file(tensors, quantised / "model.safetensors")

    with pytest.raises(SourceError, match="_proj"):
        convert_directory(quantised, tmp_path / "store")
