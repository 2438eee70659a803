from pathlib import Path

import pytest

from teengined.core.errors import PackageCorrupt, PackageError
from teengined.modelpack.manifest import read_manifest
from teengined.modelpack.verify import check_unit, check_unit_on_disk, verify_package
from tests.fakes.manifests import write_package


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_an_intact_package_is_read_whole_and_reports_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = verify_package(write_package(tmp_path), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (manifest.size_bytes, manifest.size_bytes)
    assert len(seen) == len(manifest.units)


@pytest.mark.parametrize(
    ("file", "offset", "unit"),
    [
        ("head", 4096, "head"),
        ("head", 8191, "head"),
        ("layer-1", 4096 + 5, "layer.1"),
        ("layer-1", 8192 + 5, "layer.1.expert.0"),
        ("layer-1", 12288 + 4000, "layer.1.expert.1"),
    ],
)
def test_a_flipped_bit_anywhere_in_a_unit_names_that_unit(file: str, offset: int, unit: str, tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    flip(directory / "units" / f"{file}.safetensors", offset)
    with pytest.raises(PackageCorrupt, match=rf"unit {unit}:"):
        verify_package(directory)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_changed_companion_is_noticed(file: str, tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    (directory / file).write_text('{"a": 1}')
    with pytest.raises(PackageCorrupt, match=file):
        verify_package(directory)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_in_memory_are_held_to_the_same_digest(kind: type, tmp_path: Path) -> None:
    unit = read_manifest(write_package(tmp_path)).units[0]
    check_unit(unit, kind(bytes(unit.size_bytes)))
    with pytest.raises(PackageCorrupt, match="unit embedding"):
        check_unit(unit, kind(b"\1" + bytes(unit.size_bytes - 1)))


def test_a_file_that_vanished_is_an_error_of_the_package(tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    unit = read_manifest(directory).units[0]
    (directory / unit.file).unlink()
    with pytest.raises(PackageError, match="unit embedding"):
        check_unit_on_disk(directory, unit)
