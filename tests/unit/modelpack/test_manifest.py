import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teengined.core.errors import PackageError
from teengined.core.records import to_mapping
from teengined.modelpack.manifest import check_manifest, read_manifest, write_manifest
from tests.fakes.manifests import manifest, manifest_table, write_package

Table = dict[str, Any]


def unit(table: Table, identity: str) -> Table:
    return next(unit for unit in table["units"] if unit["id"] == identity)


def change(identity: str, **fields: object) -> Callable[[Table], object]:
    return lambda table: unit(table, identity).update(fields)


def change_tensor(identity: str, index: int, **fields: object) -> Callable[[Table], object]:
    return lambda table: unit(table, identity)["tensors"][index].update(fields)


def remove(identity: str) -> Callable[[Table], object]:
    return lambda table: table["units"].remove(unit(table, identity))


BENT: list[tuple[str, Callable[[Table], object]]] = [
    ("schema", lambda table: table.update(schema="teengine.package/v9")),
    ("unknown key", lambda table: table.update(surprise=1)),
    ("missing", lambda table: table.pop("num_layers")),
    ("num_layers is 0", lambda table: table.update(num_layers=0)),
    ("max_context_tokens", lambda table: table.update(max_context_tokens=-5)),
    ("kv_elements_per_token", lambda table: table.update(kv_elements_per_token=[16])),
    ("kv_elements_per_token", lambda table: table.update(kv_elements_per_token=[16, -1])),
    ("compute_dtype", lambda table: table.update(compute_dtype="fp8")),
    ("num_experts_per_token", lambda table: table.update(num_experts_per_token=3)),
    ("tied_parameters", lambda table: table.update(tied_parameters={"a": "nowhere"})),
    ("tied_parameters", lambda table: table.update(tied_parameters={"head.weight": "embedding.weight"})),
    (r"unit embedding: missing", remove("embedding")),
    (r"unit layer\.0: missing", remove("layer.0")),
    (r"unit head: missing", remove("head")),
    (r"unit layer\.1\.expert\.0", remove("layer.1.expert.0")),
    ("more than once", lambda table: table["units"].append({**unit(table, "head"), "offset_bytes": 40960})),
    ("num_experts|numbered", lambda table: table.update(num_experts=1, num_experts_per_token=1)),
    ("layer outside", lambda table: table["units"].append({**unit(table, "layer.0"), "id": "layer.7", "layer": 7,
                                                            "offset_bytes": 81920})),
    (r"head.*agree", change("head", layer=1)),
    (r"layer\.0.*agree", change("layer.0", kind="head", layer=None)),
    (r"head.*file", change("head", file="../outside.safetensors")),
    (r"head.*file", change("head", file="/etc/passwd")),
    (r"head.*file", change("head", file="units/../../x.safetensors")),
    (r"head.*file", change("head", file="units/.hidden.safetensors")),
    (r"head.*file", change("head", file="manifest.json")),
    (r"head.*offset_bytes", change("head", offset_bytes=100)),
    (r"head.*offset_bytes", change("head", offset_bytes=-4096)),
    (r"head.*size_bytes", change("head", size_bytes=0)),
    (r"head.*size_bytes", change("head", size_bytes=5000)),
    (r"head.*num_parameters", change("head", num_parameters=-1)),
    (r"head.*digest", change("head", digest="md5:123")),
    (r"expert\.1: overlaps", change("layer.1.expert.1", offset_bytes=8192)),
    (r"head.*dtype", change_tensor("head", 0, dtype="PICKLE")),
    (r"head.*negative", change_tensor("head", 0, shape=[-4, 8])),
    (r"head.*multiple of 64", change_tensor("head", 1, offset_bytes=130)),
    (r"head.*takes 128", change_tensor("head", 0, size_bytes=64)),
    (r"head.*overlaps", change_tensor("head", 1, offset_bytes=64)),
    (r"head.*beyond", change_tensor("head", 1, offset_bytes=4096)),
    (r"head.*takes", change_tensor("head", 0, shape=[2**40, 2**40])),
]  # fmt: skip


def test_a_consistent_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    read = read_manifest(directory)
    assert read == manifest()
    write_manifest(directory, read)
    assert read_manifest(directory) == read


@pytest.mark.parametrize(("problem", "bend"), BENT)
def test_a_bent_manifest_is_refused_with_unit_or_field(
    problem: str, bend: Callable[[Table], object], tmp_path: Path
) -> None:
    table = manifest_table()
    bend(table)
    directory = write_package(tmp_path, table)
    with pytest.raises(PackageError, match=problem) as refused:
        read_manifest(directory)
    assert refused.value.hint


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"a":' * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    (directory / "manifest.json").write_text(content)
    with pytest.raises(PackageError, match=r"manifest\.json"):
        read_manifest(directory)


def test_a_directory_without_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no model package"):
        read_manifest(tmp_path)


def test_a_unit_file_that_is_missing_short_or_a_link_is_refused(tmp_path: Path) -> None:
    head = write_package(tmp_path) / "units" / "head.safetensors"
    head.write_bytes(bytes(5000))
    with pytest.raises(PackageError, match="5000 bytes, its units end at 8192"):
        read_manifest(tmp_path / "small")
    head.unlink()
    with pytest.raises(PackageError, match="unit head"):
        read_manifest(tmp_path / "small")
    head.symlink_to(tmp_path / "small" / "units" / "embedding.safetensors")
    with pytest.raises(PackageError, match="not a regular file"):
        read_manifest(tmp_path / "small")


def test_a_linked_units_directory_is_refused(tmp_path: Path) -> None:
    directory = write_package(tmp_path)
    (directory / "units").rename(tmp_path / "elsewhere")
    (directory / "units").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="symbolic link"):
        read_manifest(directory)


def test_writing_an_inconsistent_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="num_layers"):
        write_manifest(tmp_path, manifest(num_layers=0))
    assert list(tmp_path.iterdir()) == []


def test_a_large_manifest_is_checked_in_reasonable_work() -> None:
    table = manifest_table(num_layers=40, num_experts=64)
    template = [one for one in table["units"] if one["kind"] == "expert"]
    for layer in range(39):
        for one in template:
            file = f"units/layer-{layer}.safetensors"
            identity = one["id"].replace("layer.39", f"layer.{layer}")
            table["units"].append({**one, "layer": layer, "file": file, "id": identity})
    check_manifest(manifest(**table))


def test_the_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    write_manifest(tmp_path / "small", manifest())
    text = (tmp_path / "small" / "manifest.json").read_text()
    assert json.loads(text)["units"] == [to_mapping(unit) for unit in manifest().units]
    assert '\n "num_layers": ' in text
