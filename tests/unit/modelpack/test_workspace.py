from pathlib import Path

import pytest

from teengined.core.errors import Conflict
from teengined.core.model import UnitKind
from teengined.modelpack import workspace as workspace_module
from teengined.modelpack.unitfile import PartBytes, UnitFileWriter
from teengined.modelpack.workspace import Workspace, open_workspace


def write_unit(workspace: Workspace, file: str, content: bytes) -> None:
    with UnitFileWriter(workspace.directory, file, 4096) as writer:
        writer.add(PartBytes(parameter="w", part="data", dtype="U8", shape=(len(content),), content=content))
        unit = writer.end_unit("head", UnitKind.HEAD)
    workspace.record(file, [unit])


def test_a_second_writer_of_the_same_name_is_refused_and_another_name_is_not(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "a/b"):
        with pytest.raises(Conflict, match="a/b"), open_workspace(tmp_path, "a/b"):
            pass
        with open_workspace(tmp_path, "a/c"):
            pass
    with open_workspace(tmp_path, "a/b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_same_conversion_finds_its_complete_files_again(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "m") as workspace:
        assert workspace.completed("one") == {}
        write_unit(workspace, "a.safetensors", b"1234")
    with open_workspace(tmp_path, "m") as workspace:
        done = workspace.completed("one")
    assert [unit.id for unit in done["a.safetensors"]] == ["head"]


@pytest.mark.parametrize("fingerprint", ["two", ""])
def test_another_conversion_or_one_that_cannot_tell_starts_from_nothing(fingerprint: str, tmp_path: Path) -> None:
    with open_workspace(tmp_path, "m") as workspace:
        workspace.completed("one")
        write_unit(workspace, "a.safetensors", b"1234")
    with open_workspace(tmp_path, "m") as workspace:
        assert workspace.completed(fingerprint) == {}
        assert list((workspace.directory / "units").iterdir()) == []


def test_a_conversion_without_fingerprint_is_never_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        with open_workspace(tmp_path, "m") as workspace:
            assert workspace.completed("") == {}
            write_unit(workspace, "a.safetensors", b"1234")


def test_half_a_journal_line_and_a_file_that_is_gone_are_passed_over(tmp_path: Path) -> None:
    with open_workspace(tmp_path, "m") as workspace:
        workspace.completed("one")
        write_unit(workspace, "a.safetensors", b"1234")
        write_unit(workspace, "b.safetensors", b"1234")
        (workspace.directory / "units" / "a.safetensors").unlink()
        with (workspace.directory / "journal.jsonl").open("a") as journal:
            journal.write('{"file": "c.safeten')
    with open_workspace(tmp_path, "m") as workspace:
        assert list(workspace.completed("one")) == ["b.safetensors"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_publishing_replaces_an_older_package_whole(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(workspace_module, "_exchange", lambda _one, _other: False)
    (tmp_path / "m" / "old").mkdir(parents=True)
    with open_workspace(tmp_path, "m") as workspace:
        workspace.completed("one")
        write_unit(workspace, "a.safetensors", b"1234")
        workspace.publish()
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["units"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_replacement_cut_between_its_two_steps_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / ".retired-m" / "units").mkdir(parents=True)
    with open_workspace(tmp_path, "m"):
        assert (tmp_path / "m" / "units").is_dir()
