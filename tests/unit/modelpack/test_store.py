from pathlib import Path

import pytest

from teengined.core.errors import Conflict, PackageError, RequestError, UnknownModel
from teengined.modelpack.store import PackageStore
from teengined.modelpack.workspace import open_workspace
from tests.fakes.manifests import write_package


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    for name in ("smollm2", "org--chat", "qwen3-8b"):
        write_package(tmp_path).rename(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".converting-half" / "units").mkdir(parents=True)
    (tmp_path / ".converting-half" / "manifest.json").write_text("{}")
    return PackageStore(tmp_path)


def test_names_are_those_of_complete_packages(store: PackageStore) -> None:
    assert store.names() == ("org/chat", "qwen3-8b", "smollm2")
    assert PackageStore(store.root / "absent").names() == ()


def test_the_path_of_a_name_with_an_organisation_is_one_directory(store: PackageStore) -> None:
    assert store.path_of("org/chat") == store.root / "org--chat"


def test_an_unknown_name_gets_the_nearest_ones(store: PackageStore) -> None:
    with pytest.raises(UnknownModel, match="smollm3") as unknown:
        store.path_of("smollm3")
    assert "smollm2" in unknown.value.hint
    with pytest.raises(UnknownModel) as unknown:
        store.path_of("zzz")
    assert "qwen3-8b" in unknown.value.hint
    with pytest.raises(UnknownModel) as unknown:
        PackageStore(store.root / "absent").path_of("x")
    assert "teengine pull" in unknown.value.hint


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", ".converting-half", ""])
def test_names_cannot_lead_out_of_the_store(name: str, store: PackageStore) -> None:
    with pytest.raises(RequestError):
        store.path_of(name)
    with pytest.raises(RequestError):
        store.remove(name)


def test_a_package_tells_what_a_listing_shows(store: PackageStore) -> None:
    manifest = store.manifest("smollm2")
    assert (manifest.architecture, manifest.precision) == ("llama", "fp32")
    assert store.size_bytes("smollm2") > manifest.size_bytes
    assert store.modified_seconds("smollm2") == (store.root / "smollm2" / "manifest.json").stat().st_mtime


def test_a_damaged_package_is_listed_and_refused(store: PackageStore) -> None:
    (store.root / "smollm2" / "manifest.json").write_text("{}")
    assert "smollm2" in store.names()
    with pytest.raises(PackageError, match="smollm2"):
        store.manifest("smollm2")


def test_removing_frees_the_bytes_and_leaves_the_others(store: PackageStore) -> None:
    size = store.size_bytes("org/chat")
    assert store.remove("org/chat") == size
    assert store.names() == ("qwen3-8b", "smollm2")
    assert not (store.root / "org--chat").exists()


def test_a_package_that_is_being_replaced_cannot_be_removed(store: PackageStore) -> None:
    with open_workspace(store.root, "smollm2"), pytest.raises(Conflict, match="being converted"):
        store.remove("smollm2")
    assert "smollm2" in store.names()


def test_pruning_removes_what_dead_conversions_left_and_nothing_else(store: PackageStore) -> None:
    with open_workspace(store.root, "living") as workspace:
        workspace.completed("x")
        assert store.prune() == (".converting-half",)
        assert workspace.directory.is_dir()
    assert store.prune() == (".converting-living",)
    assert store.names() == ("org/chat", "qwen3-8b", "smollm2")
    assert not list(store.root.glob("*.lock"))
