"""Quantised checkpoints give the tokens that transformers gives when it unpacks them itself."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from benchmarks.parity_architectures import compare_checkpoint
from tests.fakes.quantised_files import FORMS, quantise_directory
from tests.fakes.tiny_models import build_tiny_model


def with_mxfp4_experts(directory: Path) -> Path:
    """Replace the experts of a tiny gpt-oss by blocks as the published checkpoints have them."""
    rng = torch.Generator().manual_seed(3)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        num_experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (num_experts, outputs, inputs // 32, 16), generator=rng)
        tensors[f"{name}_blocks"] = blocks.to(torch.uint8)
        scales = torch.randint(119, 124, blocks.shape[:-1], generator=rng)
        tensors[f"{name}_scales"] = scales.to(torch.uint8)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    return directory


def test_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    source = with_mxfp4_experts(build_tiny_model("gpt_oss", tmp_path / "source"))
    loaded = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    )

    rows = list(compare_checkpoint("gpt_oss", source, loaded.float().eval(), tmp_path / "store"))

    assert [row.difference for row in rows] == [""] * 3


def test_deepseek_in_fp8_blocks(tmp_path: Path) -> None:
    plain = build_tiny_model("deepseek_v3", tmp_path / "plain")
    form = FORMS["fp8-square"]
    source = quantise_directory(plain, tmp_path / "source", form, lambda name: name.endswith("_proj.weight"))
    loaded = AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=FineGrainedFP8Config(weight_block_size=(8, 8), dequantize=True),
        dtype=torch.float32,
    )

    rows = list(compare_checkpoint("deepseek_v3", source, loaded.float().eval(), tmp_path / "store"))

    assert [row.difference for row in rows] == [""] * 3
