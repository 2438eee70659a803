"""Synthetic packages: written by the program, whole and shared, run as any other, resumed after an interruption."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from teengined.core.errors import TeengineError
from teengined.core.model import UnitKind
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.command import SynthCommand, run_synth
from teengined.modelpack.manifest import read_manifest
from teengined.modelpack.store import PackageStore
from teengined.modelpack.synthesis import SynthesisOptions, synthesise
from teengined.modelpack.verify import verify_package
from tests.fakes.conversion_process import kill_after, num_recorded, run_program, start_program
from tests.fakes.stage_runner import Part, StageRunner
from tests.fakes.tiny_models import tiny_config

ARCHITECTURES = ["llama", "deepseek_v3", "qwen3_moe", "gpt_oss", "gpt2"]


def shape_of(architecture: str, directory: Path, **changes: object) -> Path:
    path = directory / f"{architecture}.json"
    table = tiny_config(architecture).to_dict() | changes
    path.write_text(json.dumps(table, default=str))
    return path


def synth(name: str, store: Path, like: Path | str, **choices: Any) -> dict[str, Any]:
    """Make one in this process."""
    command = SynthCommand(name=name, store=store, like=str(like), **choices)
    return run_synth(command, PluginRegistry.load(), lambda _progress: None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_synthetic_model_answers_with_finite_numbers(architecture: str, precision: str, tmp_path: Path) -> None:
    synth("noise", tmp_path, shape_of(architecture, tmp_path), precision=precision)
    verify_package(tmp_path / "noise")

    with StageRunner(tmp_path / "noise", is_strict=False) as runner:
        (logits,) = runner.run(Part(token_ids=list(b"hello"), start_position=0, table=(0,)))

    assert logits.shape[0] == 5
    assert torch.isfinite(logits).all()
    assert 0 < float(logits.float().std()) < 100


def test_units_share_bytes_up_to_what_may_be_distinct_and_the_output_says_so(tmp_path: Path) -> None:
    shape = shape_of("deepseek_v3", tmp_path, n_routed_experts=64)
    made = run_program("synth", "shared", "--store", tmp_path, "--like", shape, "--distinct", "500KB")

    assert made.status == 0, made.last
    assert made.last["stored_bytes"] <= 510_000 < 700_000 < made.last["size_bytes"]
    assert made.last["distinct_share"] == pytest.approx(made.last["stored_bytes"] / made.last["size_bytes"])
    assert "distinct contents" in made.last["notes"][0]
    on_disk = PackageStore(tmp_path).size_bytes("shared")
    manifest = verify_package(tmp_path / "shared")
    companions = sum(path.stat().st_size for path in (tmp_path / "shared").glob("*.json"))
    headers = on_disk - companions - manifest.stored_bytes
    assert 0 < headers < 400_000
    digests = {unit.digest for unit in manifest.units}
    assert len(digests) == len({unit.place for unit in manifest.units}) < len(manifest.units)


def test_the_files_are_safetensors_that_other_tools_open(tmp_path: Path) -> None:
    shape = shape_of("qwen3_moe", tmp_path)
    synth("noise", tmp_path, shape, precision="bf16")

    manifest = read_manifest(tmp_path / "noise")
    expert = next(unit for unit in manifest.units if unit.kind is UnitKind.EXPERT)
    with safe_open(tmp_path / "noise" / expert.file, "pt") as file:
        tensor = file.get_tensor(f"{expert.tensors[0].parameter}[0]")
    assert tuple(tensor.shape) == expert.tensors[0].shape


def test_a_wish_for_parameters_changes_the_shape(tmp_path: Path) -> None:
    shape = shape_of("qwen3_moe", tmp_path)
    made = synth("wished", tmp_path, shape, parameters="500K")

    assert made["num_parameters"] == pytest.approx(500_000, rel=0.1)
    assert read_manifest(tmp_path / "wished").num_parameters == made["num_parameters"]


@pytest.mark.parametrize(
    ("choices", "code", "problem"),
    [
        ({"like": "kimi-k9"}, "invalid_request", "no shape named"),
        ({"parameters": "many"}, "invalid_request", "K, M, B, T"),
        ({"parameters": "10M"}, "invalid_request", "the nearest has"),
        ({"parameters": "900T"}, "invalid_request", "the nearest has"),
        ({"distinct": "1MB"}, "invalid_request", "one unit of each shape takes"),
        ({"distinct": "lots"}, "invalid_request", "KiB, MiB"),
        ({"precision": "int7"}, "config_invalid", "int7"),
        ({"precision": "fp32"}, "disk_full", "the package needs 4.1 TB"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    choices: dict[str, str], code: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(TeengineError, match=re.escape(problem)) as refused:
        synth("never", tmp_path, **{"like": "kimi-k2", **choices})

    assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_the_ends_may_be_stored_in_another_way(tmp_path: Path) -> None:
    registry = PluginRegistry.load()
    options = SynthesisOptions(
        name="mixed",
        store=tmp_path,
        like="a test",
        ends=registry.precision("bf16"),
        report=lambda _progress: None,
        clock=time.monotonic,
    )

    synthesise(tiny_config("llama").to_dict(), registry.precision("int8"), options)

    manifest = verify_package(tmp_path / "mixed")
    assert {unit.kind: unit.precision for unit in manifest.units} == {
        UnitKind.EMBEDDING: "bf16",
        UnitKind.LAYER: "int8",
        UnitKind.HEAD: "bf16",
    }
    with StageRunner(tmp_path / "mixed", is_strict=False) as runner:
        (logits,) = runner.run(Part(token_ids=[1, 2], start_position=0, table=(0,)))
    assert torch.isfinite(logits).all()


def test_the_command_tells_what_is_on_disk_and_what_is_not(tmp_path: Path) -> None:
    shape = shape_of("deepseek_v3", tmp_path, n_routed_experts=64)
    words = ["synth", "--like", str(shape), "--distinct", "500KB", "--store", str(tmp_path / "store"), "noise"]
    command = [sys.executable, "-m", "teengined.cli.main", *words]

    ran = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    assert re.match(r"noise  1\.2 MB, \d+ kB on disk  int8  .*/store/noise\n", ran.stdout)
    assert "distinct contents" in ran.stderr


def test_the_program_says_what_was_wrong(tmp_path: Path) -> None:
    refused = run_program("synth", "never", "--store", tmp_path, "--like", "kimi-k9")

    assert (refused.status, refused.last["code"]) == (2, "invalid_request")


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    shape = shape_of("llama", tmp_path, num_hidden_layers=120)
    arguments = ("synth", "long", "--store", tmp_path / "store", "--like", shape)
    process = start_program(*arguments)
    kill_after(process, lambda: num_recorded(tmp_path / "store", "long") >= 5, signal.SIGKILL)
    finished = num_recorded(tmp_path / "store", "long")
    assert 5 <= finished < 122
    first = (tmp_path / "store" / ".converting-long" / "units" / "embedding.safetensors").stat()

    made = run_program(*arguments)

    assert made.status == 0, made.last
    assert (tmp_path / "store/long/units/embedding.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["long"]
    resumed = verify_package(tmp_path / "store" / "long")
    assert run_program("synth", "long", "--store", tmp_path / "other", "--like", shape).status == 0
    afresh = read_manifest(tmp_path / "other" / "long")
    assert [unit.digest for unit in afresh.units] == [unit.digest for unit in resumed.units]
