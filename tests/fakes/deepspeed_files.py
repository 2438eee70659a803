"""Writes checkpoints as DeepSpeed does, for models trained by nobody: ZeRO stages 1 to 3, and universal.

The shapes, paddings, names and classes are those of DeepSpeed's own code (runtime/zero, runtime/engine.py,
checkpoint/ds_to_universal.py). Writing a pickle runs nothing; reading one back is what the code under test must not do.
"""

import contextlib
import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import torch
import torch.serialization

__all__ = ["State", "write_torch_file", "write_universal", "write_zero"]

State = Mapping[str, torch.Tensor]
_TAG = "global_step7"


def write_torch_file(value: object, path: Path) -> Path:
    """Write `value` in PyTorch's own form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.serialization.save(value, path)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Classes:
    """DeepSpeed's classes that stand in its checkpoints, under their own names."""

    stage: Any
    fragment: Any
    scaler: Any


def write_zero(
    directory: Path,
    state: State,
    *,
    stage: int,
    world: int,
    frozen: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
) -> Path:
    """Write `state` (fp32) as a training run of `world` ranks under ZeRO `stage` would, and return `directory`.

    The model's own state is bf16, so that a reader who takes it for the weights is found out.
    """
    trained = {name: tensor for name, tensor in state.items() if name not in frozen}
    kept = frozen if stage > 1 else ()  # Stage 1 leaves what is frozen to the model's own state.
    model_state = _model_state(state, trained, kept, shared or {})
    with _deepspeed_classes() as classes:
        if stage == 3:
            _write_stage_3(directory / _TAG, trained, model_state, classes, state, frozen, world)
        else:
            _write_stage_2(directory / _TAG, trained, model_state, classes, stage, world)
    (directory / "latest").write_text(_TAG)
    return directory


def write_universal(directory: Path, state: State, *, flat: bool) -> Path:
    """Write `state` as DeepSpeed's conversion to universal checkpoints does; `flat`: from ZeRO stage 3."""
    tagged = directory / f"{_TAG}_universal"
    for name, tensor in state.items():
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            content = tensor if kind == "fp32" else torch.zeros_like(tensor)
            value = content.reshape(-1) if flat else {"param": content, "cat_dim": 0}
            write_torch_file(value, tagged / "zero" / name / f"{kind}.pt")
        write_torch_file(torch.tensor(3.0), tagged / "zero" / name / "step.pt")
    with _deepspeed_classes() as classes:
        write_torch_file({"zero_stage": classes.stage(3 if flat else 2)}, tagged / "zero" / "optimizer_state.pt")
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if flat else "mp_rank_00_model_states.pt"
    write_torch_file(_model_state(state, dict(state), (), {}), tagged / name)
    (directory / "latest_universal").write_text(tagged.name)
    return directory


def _model_state(state: State, trained: State, frozen: Sequence[str], shared: Mapping[str, str]) -> dict[str, Any]:
    module = OrderedDict((name, tensor.to(torch.bfloat16)) for name, tensor in state.items())
    module.update({alias: module[owner] for alias, owner in shared.items()})
    module._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((n, state[n].shape) for n in group) for group in _groups(trained)],
        "frozen_param_shapes": OrderedDict((n, state[n].shape) for n in frozen) if frozen else None,
        "shared_params": OrderedDict(shared),
        "frozen_param_fragments": OrderedDict((n, state[n]) for n in frozen) if frozen else None,
        "lr_scheduler": {"base_lrs": [1e-4], "last_epoch": 7, "lr_lambdas": [{}]},
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 7,
        "global_samples": 1 << 40,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"train_batch_size": 8, "zero_optimization": {"stage": 2, "overlap_comm": True}},
        "ds_version": "0.19.0",
    }


def _groups(trained: State) -> list[list[str]]:
    """Matrices decay, vectors do not: the two groups that most training programs make."""
    return [[name for name, tensor in trained.items() if (tensor.ndim > 1) is decays] for decays in (True, False)]


def _write_stage_2(
    tagged: Path, trained: State, model_state: dict[str, Any], classes: _Classes, stage: int, world: int
) -> None:
    flat = [torch.cat([trained[name].reshape(-1).float() for name in group]) for group in _groups(trained)]
    paddings = [-vector.numel() % (2 * world) for vector in flat]
    padded = [torch.cat([v, torch.zeros(p)]).chunk(world) for v, p in zip(flat, paddings, strict=True)]
    for rank in range(world):
        last = rank == world - 1
        parts = [chunks[rank] for chunks in padded]
        lean = [part[: part.numel() - (p if last else 0)] for part, p in zip(parts, paddings, strict=True)]
        mappings = [{name: classes.fragment(numel=1, start=0) for name in group} for group in _groups(trained)]
        optimizer = {
            "loss_scaler": classes.scaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            "clip_grad": 1.0,
            "base_optimizer_state": {
                "state": {i: {"step": torch.tensor(7.0), "exp_avg": part} for i, part in enumerate(parts)},
                "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
            },
            "single_partition_of_fp32_groups": lean,
            "zero_stage": classes.stage(stage),
            "group_paddings": paddings if last else [0, 0],
            "partition_count": [world, world],
            "ds_version": "0.19.0",
            "param_slice_mappings": mappings,
        }
        content = {"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.19.0"}
        write_torch_file(content, tagged / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    write_torch_file(model_state, tagged / "mp_rank_00_model_states.pt")


def _write_stage_3(
    tagged: Path,
    trained: State,
    model_state: dict[str, Any],
    classes: _Classes,
    state: State,
    frozen: Sequence[str],
    world: int,
) -> None:
    def parts_of(name: str) -> list[torch.Tensor]:
        flat = state[name].reshape(-1).float()
        return list(torch.cat([flat, torch.zeros(-flat.numel() % world)]).chunk(world))

    for rank in range(world):
        groups = [torch.cat([parts_of(name)[rank] for name in group]) for group in _groups(trained)]
        optimizer = {
            "zero_stage": classes.stage(3),
            "loss_scaler": classes.scaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            "partition_count": world,
            "optimizer_state_dict": {"state": {0: {"exp_avg": groups[0]}}, "param_groups": []},
            "fp32_flat_groups": groups,
        }
        stem = f"zero_pp_rank_{rank}_mp_rank_00"
        write_torch_file({"optimizer_state_dict": optimizer}, tagged / f"{stem}_optim_states.pt")
        placeholders = OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for name in state)
        fragments = OrderedDict((name, parts_of(name)[rank]) for name in frozen) if frozen else None
        own = {**model_state, "module": placeholders, "frozen_param_fragments": fragments}
        write_torch_file(own, tagged / f"{stem}_model_states.pt")


@contextlib.contextmanager
def _deepspeed_classes() -> Generator[_Classes]:
    """Make the classes under DeepSpeed's module names for as long as files are written."""
    stage = enum.IntEnum("ZeroStageEnum", {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3})
    made = {
        "deepspeed.runtime.zero.config": enum.Enum("ZeroStageEnum", {m.name: m.value for m in stage}, type=int),
        "deepspeed.utils.tensor_fragment": make_dataclass("fragment_address", [("numel", int), ("start", int)]),
        "deepspeed.runtime.fp16.loss_scaler": make_dataclass("LossScaler", [("cur_scale", float, 1.0)]),
    }
    modules: dict[str, types.ModuleType] = {}
    for place, cls in made.items():
        cls.__module__ = place
        cls.__qualname__ = cls.__name__
        modules[place] = types.ModuleType(place)
        setattr(modules[place], cls.__name__, cls)
        for parent in (
            "deepspeed",
            "deepspeed.runtime",
            "deepspeed.runtime.zero",
            "deepspeed.runtime.fp16",
            "deepspeed.utils",
        ):
            modules.setdefault(parent, types.ModuleType(parent))
    sys.modules.update(modules)
    try:
        yield _Classes(
            stage=made["deepspeed.runtime.zero.config"],
            fragment=made["deepspeed.utils.tensor_fragment"],
            scaler=made["deepspeed.runtime.fp16.loss_scaler"],
        )
    finally:
        for name in modules:
            sys.modules.pop(name, None)
