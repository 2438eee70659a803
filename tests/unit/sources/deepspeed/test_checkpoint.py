"""Values come back as they were trained, and files that do not belong together are found out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from teengined.core.errors import SourceError
from teengined.interfaces.registry import PluginRegistry
from teengined_plugins.sources.deepspeed.checkpoint import DeepSpeed
from tests.fakes.deepspeed_files import write_torch_file, write_universal, write_zero

STATE = {
    "embed.weight": torch.randn(7, 5),
    "norm.weight": torch.randn(5),
    "up.weight": torch.randn(11, 5),
    "bias": torch.randn(1),
}


def run(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@pytest.mark.parametrize("world", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_value_comes_back(stage: int, world: int, tmp_path: Path) -> None:
    """More ranks than values too: whole ranks hold padding only."""
    checkpoint = DeepSpeed().open(str(write_zero(run(tmp_path), STATE, stage=stage, world=world)))

    assert {tensor.name: tensor.shape for tensor in checkpoint.tensors()} == {
        n: tuple(t.shape) for n, t in STATE.items()
    }
    for name, tensor in STATE.items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_what_stage_one_keeps_frozen_is_read_from_the_models_own_state(tmp_path: Path) -> None:
    saved = write_zero(run(tmp_path), STATE, stage=1, world=2, frozen=["up.weight"])

    checkpoint = DeepSpeed().open(str(saved))

    assert torch.equal(checkpoint.read("up.weight"), STATE["up.weight"].bfloat16())
    assert torch.equal(checkpoint.read("embed.weight"), STATE["embed.weight"])


@pytest.mark.parametrize("stage", [2, 3])
def test_names_that_share_a_parameter_have_its_trained_values(stage: int, tmp_path: Path) -> None:
    shared = {"head.weight": "embed.weight"}
    checkpoint = DeepSpeed().open(str(write_zero(run(tmp_path), STATE, stage=stage, world=2, shared=shared)))

    assert torch.equal(checkpoint.read("head.weight"), STATE["embed.weight"])


def test_a_flat_universal_parameter_gets_its_shape_from_the_models_state(tmp_path: Path) -> None:
    checkpoint = DeepSpeed().open(str(write_universal(run(tmp_path), STATE, flat=True)))

    assert torch.equal(checkpoint.read("up.weight"), STATE["up.weight"])


def test_the_installed_sources_send_such_a_directory_here(tmp_path: Path) -> None:
    saved = write_zero(run(tmp_path), STATE, stage=2, world=1)

    assert PluginRegistry.load().source_for(str(saved)).name == "deepspeed"


def test_a_part_of_another_run_is_found_out(tmp_path: Path) -> None:
    saved = write_zero(run(tmp_path / "a"), STATE, stage=2, world=2)
    part = "global_step7/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (saved / part).unlink()
    with pytest.raises(SourceError, match="one of 2 parts; 1 are here"):
        DeepSpeed().open(str(saved))
    other = write_zero(run(tmp_path / "b"), {**STATE, "more": torch.randn(90)}, stage=2, world=2)
    shutil.copyfile(other / part, saved / part)
    with pytest.raises(SourceError, match=r"hold .* values for parameters of"):
        DeepSpeed().open(str(saved))


SHAPES = [dict.fromkeys(("embed.weight", "up.weight"), torch.Size([7, 5])), {"norm.weight": torch.Size([5])}]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop("param_shapes"), "param_shapes"),
        (lambda s: s.update(param_shapes=[1, 2]), "param_shapes"),
        (lambda s: s.update(param_shapes=SHAPES[:1]), "as many groups"),
        (lambda s: s.update(param_shapes=SHAPES), "hold .* values for parameters of"),
        (lambda s: s["param_shapes"][0].update({"embed.weight": ["x"]}), "no shape"),
        (lambda s: s["param_shapes"][0].update({"embed.weight": torch.Size([10**6, 5])}), "hold"),
        (lambda s: s.update(frozen_param_shapes={"f": torch.Size([3])}), "frozen"),
        (lambda s: s.update(ds_autoep_layers=[{"a": 1}]), "experts"),
    ],
)
def test_a_models_state_that_does_not_fit_the_optimizers_is_found_out(
    change: Callable[[dict[str, Any]], Any], problem: str, tmp_path: Path
) -> None:
    saved = write_zero(run(tmp_path), STATE, stage=2, world=2)
    groups = [{n: t.shape for n, t in STATE.items() if (t.ndim > 1) is decays} for decays in (True, False)]
    state: dict[str, Any] = {"module": {}, "param_shapes": groups, "shared_params": {}}
    change(state)
    write_torch_file(state, saved / "global_step7/mp_rank_00_model_states.pt")

    with pytest.raises(SourceError, match=problem):
        DeepSpeed().open(str(saved))


def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    saved = write_zero(run(tmp_path), STATE, stage=3, world=2)
    checkpoint = DeepSpeed().open(str(saved))
    before = checkpoint.fingerprint
    write_zero(saved, {name: tensor + 1 for name, tensor in STATE.items()}, stage=3, world=2)

    with pytest.raises(SourceError, match="was changed"):
        checkpoint.read("up.weight")
    assert DeepSpeed().open(str(saved)).fingerprint != before


def test_a_view_whose_values_do_not_lie_side_by_side_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_torch_file({"module": {"w": torch.randn(4, 3).T}}, run(tmp_path) / "mp_rank_00_model_states.pt")
    checkpoint = DeepSpeed().open(str(tmp_path))

    with pytest.raises(SourceError, match="side by side"):
        checkpoint.read("w")
