"""The same weights saved by transformers and by a training run under DeepSpeed give the same package, byte for byte."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from teengined.core.model import ModelManifest
from teengined_plugins.sources.deepspeed.checkpoint import DeepSpeed
from tests.fakes.converted import convert_checkpoint, convert_directory
from tests.fakes.deepspeed_files import write_universal, write_zero
from tests.fakes.tiny_models import build_tiny_model


def trained_state(model: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return what a training program has in memory: each parameter once, and names that share one."""
    state = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    owners: dict[int, str] = {}
    shared = {n: owners[t.data_ptr()] for n, t in state.items() if owners.setdefault(t.data_ptr(), n) != n}
    return {name: tensor for name, tensor in state.items() if name not in shared}, shared


def beside(model: Path, directory: Path) -> Path:
    """Return `directory` with the model's companions, without its weights."""
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, directory / name)
    return directory


def digests(manifest: ModelManifest) -> Mapping[str, str]:
    return {unit.id: unit.digest for unit in manifest.units}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("llama", {"tie_word_embeddings": True}), ("gpt2", {}), ("qwen3_moe", {}), ("gpt_oss", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(("stage", "world"), [(1, 1), (1, 3), (2, 2), (2, 5), (3, 1), (3, 2), (3, 3)])
def test_zero_gives_the_package_that_transformers_gives(
    architecture: str, changes: dict[str, Any], stage: int, world: int, tmp_path: Path
) -> None:
    model = build_tiny_model(architecture, tmp_path / "model", num_hidden_layers=2, **changes)
    state, shared = trained_state(model)
    frozen = list(state)[1:3] if (world == 3 and stage == 3) or world == 5 else []
    saved = beside(model, tmp_path / "run")
    write_zero(saved, state, stage=stage, world=world, frozen=frozen, shared=shared)

    expected = convert_directory(model, tmp_path / "expected")
    made = convert_checkpoint(DeepSpeed().open(str(saved)), tmp_path / "made")

    assert digests(made) == digests(expected)
    assert made.tied_parameters == expected.tied_parameters


@pytest.mark.parametrize("flat", [False, True], ids=["stage-2", "stage-3"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_a_universal_checkpoint_gives_the_package_that_transformers_gives(
    architecture: str, flat: bool, tmp_path: Path
) -> None:
    model = build_tiny_model(architecture, tmp_path / "model", num_hidden_layers=2)
    state, _ = trained_state(model)
    saved = write_universal(beside(model, tmp_path / "run"), state, flat=flat)

    expected = convert_directory(model, tmp_path / "expected")
    made = convert_checkpoint(DeepSpeed().open(str(saved)), tmp_path / "made")

    assert digests(made) == digests(expected)
