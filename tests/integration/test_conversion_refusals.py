"""Checkpoints that cannot become a package: the error names the tensor, and nothing is left behind."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from teengined.core.errors import DiskFull, PackageError, SourceError
from teengined.modelpack.verify import verify_package
from tests.fakes.converted import convert_directory
from tests.fakes.tiny_models import build_tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build_tiny_model("llama", tmp_path / "source")


def edit(source: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(source / "model.safetensors")
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        tensors.pop(key) if tensor is None else tensors.update({key: tensor})
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def refused(source: Path, store: Path, *, precision: str = "fp32") -> SourceError:
    with pytest.raises(SourceError) as caught:
        convert_directory(source, store, precision=precision)
    assert list(store.iterdir()) == []
    return caught.value


def test_a_missing_tensor_is_named(source: Path, tmp_path: Path) -> None:
    edit(source, model__layers__1__mlp__up_proj__weight=None)
    assert "model.layers.1.mlp.up_proj.weight" in refused(source, tmp_path / "store").message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(source: Path, tmp_path: Path) -> None:
    edit(source, model__layers__2__self_attn__q_proj__weight=torch.zeros(8, 64))
    message = refused(source, tmp_path / "store").message
    assert "model.layers.2.self_attn.q_proj.weight" in message
    assert "(8, 64)" in message
    assert "(64, 64)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(value: float, source: Path, tmp_path: Path) -> None:
    edit(source, model__norm__weight=torch.full((64,), value))
    assert "model.norm.weight" in refused(source, tmp_path / "store").message


def test_values_beyond_fp16_are_refused_for_fp16_only(source: Path, tmp_path: Path) -> None:
    edit(source, model__layers__0__mlp__down_proj__weight=torch.full((64, 96), 70000.0))
    error = refused(source, tmp_path / "store", precision="fp16")
    assert "model.layers.0.mlp.down_proj.weight" in error.message
    assert "bf16" in error.hint
    convert_directory(source, tmp_path / "store", precision="bf16")


def test_a_missing_expert_is_noticed(tmp_path: Path) -> None:
    source = build_tiny_model("qwen3_moe", tmp_path / "source")
    edit(source, model__layers__1__mlp__experts__3__gate_proj__weight=None)
    assert "experts" in refused(source, tmp_path / "store").message


def test_experts_of_different_shapes_are_refused(tmp_path: Path) -> None:
    source = build_tiny_model("mixtral", tmp_path / "source")
    name = next(
        name for name in load_file(source / "model.safetensors") if "layers.1" in name and "experts.2.w1" in name
    )
    edit(source, **{name.replace(".", "__"): torch.zeros(3, 64)})
    assert "layers.1" in refused(source, tmp_path / "store").message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": -4},
        {"num_hidden_layers": "three"},
        {"num_attention_heads": 0},
        {"hidden_act": "no_such_function"},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 5},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 0},
        {"hidden_size": 10**12},
        {"vocab_size": 7},
        {"intermediate_size": 10},
        {"model_type": 7},
        {"model_type": None},
    ],
)
def test_a_config_that_lies_is_refused_and_never_a_traceback(
    changes: dict[str, object], source: Path, tmp_path: Path
) -> None:
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(source, tmp_path / "store")


def test_tensors_that_the_class_does_not_use_are_left_out_with_a_note(source: Path, tmp_path: Path) -> None:
    edit(source, classifier__weight=torch.zeros(3), model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8))
    manifest = convert_directory(source, tmp_path / "store")
    notes = [note for note in manifest.numeric_notes if "left out" in note]
    assert len(notes) == 1
    assert "classifier.weight" in notes[0]
    assert "inv_freq" not in notes[0]


def test_layers_that_predict_further_ahead_are_left_out(tmp_path: Path) -> None:
    source = build_tiny_model("deepseek_v3", tmp_path / "source", num_nextn_predict_layers=1)
    edit(source, model__layers__3__eh_proj__weight=torch.zeros(3))
    assert convert_directory(source, tmp_path / "store").num_layers == 3


def test_a_store_that_is_no_directory_is_an_error_in_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(PackageError, match="cannot be written to"):
        convert_directory(source, tmp_path / "store")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(mount_point)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


@pytest.mark.system
def test_a_disk_too_small_is_refused_before_anything_is_written(source: Path, small_disk: Path) -> None:
    older = convert_directory(source, small_disk)
    (small_disk / "filler").write_bytes(bytes(60 * 2**20))
    with pytest.raises(DiskFull, match=r"needs [\d.]+ MB, [\d.]+ MB are free") as full:
        convert_directory(source, small_disk)
    assert "--store" in full.value.hint
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "tiny"]
    assert verify_package(small_disk / "tiny") == older


@pytest.mark.system
def test_a_disk_that_fills_up_on_the_way_leaves_no_trace(source: Path, small_disk: Path) -> None:
    older = convert_directory(source, small_disk)

    def fill(_progress: object) -> None:
        with (small_disk / "filler").open("ab") as file:
            status = os.statvfs(small_disk)
            os.posix_fallocate(file.fileno(), 0, file.tell() + status.f_bavail * status.f_frsize)

    with pytest.raises(DiskFull, match="filled up"):
        convert_directory(source, small_disk, report=fill)
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "tiny"]
    assert verify_package(small_disk / "tiny") == older
