"""Packages spread over two disks: converted, verified, run, resumed, replaced and removed as any other."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from teengined.core.errors import PackageError
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.command import ConvertCommand, SynthCommand, run_convert, run_synth
from teengined.modelpack.disk_rates import measured_disks
from teengined.modelpack.spread import MARK
from teengined.modelpack.store import PackageStore
from teengined.modelpack.verify import verify_package
from tests.fakes.stage_runner import Part, StageRunner
from tests.fakes.tiny_models import build_tiny_model, tiny_config


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the test's own."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    directory = shared / f"teengine-test-{os.getpid()}"
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def synth(store: Path, disk: Path, name: str = "spread") -> Path:
    shape = store.parent / "shape.json"
    shape.write_text(json.dumps(tiny_config("llama").to_dict() | {"num_hidden_layers": 12}, default=str))
    command = SynthCommand(name=name, store=store, like=str(shape), precision="fp32", disks=(disk,))
    run_synth(command, PluginRegistry.load(), lambda _progress: None)
    return PackageStore(store).path_of(name)


def files_on(disk: Path) -> list[Path]:
    return [path for path in disk.rglob("*.safetensors") if path.is_file()]


def test_two_directories_of_one_disk_count_once_and_another_disk_is_measured(tmp_path: Path, other_disk: Path) -> None:
    disks = measured_disks(tmp_path / "store", (tmp_path / "same", other_disk))

    assert [disk.path for disk in disks] == [tmp_path / "store", other_disk]
    assert all(disk.bytes_per_second > 0 for disk in disks)


def test_a_spread_package_answers_as_one_that_is_not(tmp_path: Path, other_disk: Path) -> None:
    directory = synth(tmp_path / "store", other_disk)
    whole = synth(tmp_path / "plain", tmp_path / "plain")

    assert files_on(other_disk)
    assert verify_package(directory).units == verify_package(whole).units
    logits = []
    for package in (directory, whole):
        with StageRunner(package, is_strict=False) as runner:
            logits.append(runner.run(Part(token_ids=[1, 2, 3], start_position=0, table=(0,)))[0])
    assert logits[0].equal(logits[1])
    assert PackageStore(tmp_path / "store").size_bytes("spread") == pytest.approx(
        PackageStore(tmp_path / "plain").size_bytes("spread"), abs=10_000
    )


def test_a_conversion_is_spread_too_and_a_new_one_takes_the_old_ones_files_away(
    tmp_path: Path, other_disk: Path
) -> None:
    source = build_tiny_model("llama", tmp_path / "model", num_hidden_layers=8)
    store = tmp_path / "store"
    command = ConvertCommand(reference=str(source), store=store, cache=store, name="made", disks=(other_disk,))
    run_convert(command, PluginRegistry.load(), lambda _progress: None)
    first = files_on(other_disk)
    assert first

    run_convert(command, PluginRegistry.load(), lambda _progress: None)

    verify_package(PackageStore(store).path_of("made"))
    second = files_on(other_disk)
    assert second
    assert set(first).isdisjoint(second)


def test_removing_it_leaves_nothing_on_any_disk(tmp_path: Path, other_disk: Path) -> None:
    synth(tmp_path / "store", other_disk)

    PackageStore(tmp_path / "store").remove("spread")

    assert [path.name for path in other_disk.iterdir()] == [MARK]
    assert list((tmp_path / "store").iterdir()) == []


def test_a_file_that_is_gone_from_its_disk_is_told_by_its_unit(tmp_path: Path, other_disk: Path) -> None:
    directory = synth(tmp_path / "store", other_disk)
    files_on(other_disk)[0].unlink()

    with pytest.raises(PackageError, match=r"unit .* cannot be read: No such file"):
        verify_package(directory)
