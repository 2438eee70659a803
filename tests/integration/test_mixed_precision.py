"""Packages whose parts are stored in several precisions: what stands in them, and that they run as they stand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.modelpack.manifest import read_manifest
from teengined.modelpack.verify import verify_package
from tests.fakes.conversion_process import run_program
from tests.fakes.converted import convert_directory, read_parameters
from tests.fakes.stage_runner import Part, StageRunner
from tests.fakes.tiny_models import build_tiny_model
from tests.integration.test_expert_parity import MODELS as MIXTURES

MIXED = "int8,layers.*.mlp=int4,layers.1.attention=fp32,head=bf16"
TOKENS = torch.randint(3, 300, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def tiny_model(architecture: str, directory: Path, **changes: Any) -> Path:
    model_type = "deepseek_v3" if architecture == "kimi_k2" else architecture
    return build_tiny_model(model_type, directory, **{**MIXTURES.get(architecture, {}), **changes})


def precisions_of(directory: Path) -> dict[str, str]:
    manifest = read_manifest(directory)
    return {
        tensor.parameter: tensor.precision or unit.precision
        for unit in manifest.units
        for tensor in unit.tensors
        if tensor.part == "data" and len(tensor.parameter_shape or tensor.shape) == 2
    }


def test_each_matrix_is_stored_as_the_last_rule_says(tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "source", num_hidden_layers=2)
    manifest = convert_directory(source, tmp_path / "store", precision=MIXED)

    found = precisions_of(tmp_path / "store" / "tiny")

    assert found["model.embed_tokens.weight"] == "int8"
    assert found["model.layers.0.self_attn.q_proj.weight"] == "int8"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "fp32"
    assert found["model.layers.1.mlp.down_proj.weight"] == "int4"
    assert found["lm_head.weight"] == "bf16"
    verify_package(tmp_path / "store" / "tiny", lambda _done, _total: None)
    layer = manifest.units_of_layer(1)[0]
    counts = layer.parameters_by_precision
    assert sum(counts.values()) == layer.num_parameters
    assert (counts["int4"], counts["fp32"]) == (3 * 64 * 96 + 2 * 64, layer.num_parameters - counts["int4"])
    assert "layers.*.mlp stored as int4" in manifest.numeric_notes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", *MIXTURES])
@pytest.mark.parametrize("precision", ["int4", "int8", "int8,layers.*.mlp=int4,layers.1.attention=fp32"])
def test_logits_are_those_of_the_weights_as_they_are_stored(architecture: str, precision: str, tmp_path: Path) -> None:
    source = tiny_model(architecture, tmp_path / "source", num_hidden_layers=2)
    (tmp_path / "store").mkdir()
    manifest = convert_directory(source, tmp_path / "store", precision=precision, compute_dtype="fp32")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert precision.partition(",")[0] in precisions_of(tmp_path / "store" / "tiny").values()

    for name, stored in read_parameters(tmp_path / "store" / "tiny", manifest).items():
        module = model.get_submodule(name.rpartition(".")[0])
        is_turned = isinstance(module, Conv1D) or (getattr(module, "is_transposed", False) and stored.ndim == 3)
        model.state_dict()[name].copy_(stored.mT if is_turned and stored.ndim > 1 else stored)
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    with StageRunner(tmp_path / "store" / "tiny", is_strict=False) as runner:
        logits = runner.run(Part(token_ids=TOKENS, start_position=0, table=[0, 1, 2]))[0]

    assert float((logits - expected).norm() / expected.norm()) < 1e-4


def test_one_expert_may_be_stored_in_another_precision(tmp_path: Path) -> None:
    source = build_tiny_model("qwen3_moe", tmp_path / "source", num_hidden_layers=2)
    manifest = convert_directory(source, tmp_path / "store", precision="int4,layers.1.experts.2=bf16")

    experts = [unit for unit in manifest.units_of_layer(1) if unit.expert is not None]

    assert [unit.precision for unit in experts if unit.expert == 2] == ["bf16"]
    assert {unit.precision for unit in experts if unit.expert != 2} == {"int4"}


def test_a_head_that_is_the_embedding_answers_to_both_names(tmp_path: Path) -> None:
    source = build_tiny_model("gpt2", tmp_path / "source", num_hidden_layers=2)
    convert_directory(source, tmp_path / "store", precision="fp32,head=int8")

    assert precisions_of(tmp_path / "store" / "tiny")["transformer.wte.weight"] == "int8"


def test_a_plan_counts_matrices_as_wide_as_they_are(tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "source", num_hidden_layers=2)
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1 << 30)
    workspaces = []
    for precision in ("bf16", "int4"):
        manifest = convert_directory(source, tmp_path / "store", precision=precision, name=precision)
        plan = plan_without_measuring(manifest, ((spec, 2),), resident_fraction=None, context_tokens=256)
        workspaces.append(plan.stages[0].workspace_bytes)

    assert workspaces[1] - workspaces[0] == 64 * 96 * 2  # the largest matrix once in bf16


def test_rules_are_taken_by_the_program_and_int4_keeps_the_ends_in_int8(tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "model", num_hidden_layers=2)

    outcome = run_program(
        "convert", source, "--store", tmp_path, "--name", "mine", "--precision", "int4,layers.0.mlp=bf16"
    )

    assert outcome.status == 0
    found = precisions_of(Path(outcome.last["path"]))
    assert {found["model.embed_tokens.weight"], found["lm_head.weight"]} == {"int8"}
    assert found["model.layers.0.mlp.up_proj.weight"] == "bf16"
    assert found["model.layers.1.mlp.up_proj.weight"] == "int4"


@pytest.mark.parametrize(
    ("precision", "message", "hint"),
    [
        ("int4,layers.*.mpl=int8", "matches no matrix", "did you mean 'layers.*.mlp'?"),
        ("int4,head=int9", "no precision named 'int9'", "did you mean 'int8'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(precision: str, message: str, hint: str, tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "model", num_hidden_layers=2)

    outcome = run_program("convert", source, "--store", tmp_path, "--name", "mine", "--precision", precision)

    assert outcome.status != 0
    assert message in outcome.last["message"]
    assert hint in outcome.last["hint"]
    assert not (tmp_path / "mine").exists()
