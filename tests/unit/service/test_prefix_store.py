import os
import resource
import threading
from pathlib import Path

import pytest

from teengined.kvcache.kept import KeptBlock
from teengined.service import prefix_store
from teengined.service.prefix_manifest import PrefixManifest
from teengined.service.prefix_store import KeptPrefixes, PrefixStore

NOW, DAY = 1e9, 86400.0
MANIFEST = PrefixManifest(
    fingerprint="this",
    block_tokens=2,
    num_stages=1,
    kernels=("stock",),
    blocks=(KeptBlock(slot=0, salt=b"salt", token_ids=(1, 2), digests=(b"d",)),),
)


def store(tmp_path: Path, max_bytes: int = 1 << 20) -> PrefixStore:
    return PrefixStore(
        root=tmp_path / "kept",
        key_path=tmp_path / "spool.key",
        max_bytes=max_bytes,
        max_age_seconds=DAY,
        now=lambda: NOW,
    )


def opened(where: PrefixStore, package: str = "tiny", fingerprint: str = "this") -> KeptPrefixes:
    kept = where.open(package, fingerprint)
    assert kept is not None
    return kept


def kept_since(where: PrefixStore, package: str, age_seconds: float, num_bytes: int = 8192) -> Path:
    kept = opened(where, package)
    (kept.path / "stage0").write_bytes(b"x" * num_bytes)
    assert kept.write(MANIFEST) == ""
    os.utime(kept.path / "manifest", (NOW - age_seconds, NOW - age_seconds))
    kept.close()
    return kept.path


def test_what_is_written_is_read_by_who_comes_next(tmp_path: Path):
    first = opened(store(tmp_path))
    assert first.read() is None
    assert first.write(MANIFEST) == ""
    first.close()
    first.close()

    again = opened(store(tmp_path))

    assert again.read() == MANIFEST
    assert sorted(path.name for path in again.path.iterdir()) == ["manifest"]
    assert (again.path / "manifest").stat().st_mode & 0o777 == 0o600
    assert again.path.stat().st_mode & 0o777 == again.path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_closed_is_not_written_to(tmp_path: Path):
    kept = opened(store(tmp_path))
    kept.close()

    assert kept.write(MANIFEST) == ""
    assert list(kept.path.iterdir()) == []


def test_directory_is_one_deployments_at_a_time(tmp_path: Path):
    first = opened(store(tmp_path))

    assert store(tmp_path).open("tiny", "this") is None
    assert opened(store(tmp_path), "other").path != first.path
    store(tmp_path).forget("tiny")
    store(tmp_path, max_bytes=0).trim()
    assert first.path.is_dir()
    first.close()
    assert opened(store(tmp_path)).path == first.path


def test_what_is_of_no_use_is_removed_with_its_slots(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = kept_since(store(tmp_path), "tiny", 0.0)
    other = opened(store(tmp_path), fingerprint="that")

    assert other.read() is None
    assert list(path.iterdir()) == []
    assert "the package or its settings are others now" in caplog.text


def test_slots_without_a_manifest_are_removed(tmp_path: Path):
    kept = opened(store(tmp_path))
    (kept.path / "stage0").write_bytes(b"x")

    assert kept.read() is None
    assert list(kept.path.iterdir()) == []


@pytest.mark.parametrize("how", ["too large", "others may read it", "a directory", "a pipe", "a link"])
def test_manifest_that_is_none_is_removed(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch):
    path = kept_since(store(tmp_path), "tiny", 0.0) / "manifest"
    if how == "too large":
        monkeypatch.setattr("teengined.service.prefix_store.MAX_MANIFEST_BYTES", 10)
    elif how == "others may read it":
        path.chmod(0o644)
    else:
        path.unlink()
        {"a directory": path.mkdir, "a pipe": lambda: os.mkfifo(path), "a link": lambda: path.symlink_to("stage0")}[
            how
        ]()
    kept = opened(store(tmp_path))

    assert kept.read() is None
    assert list(kept.path.iterdir()) == []


def test_full_disk_drops_the_manifest_and_tells(tmp_path: Path):
    kept = opened(store(tmp_path))
    assert kept.write(MANIFEST) == ""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        problem = kept.write(MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert "the manifest of kept KV cannot be written" in problem
    assert list(kept.path.iterdir()) == []
    assert kept.write(MANIFEST) == ""


def test_oldest_go_when_they_are_too_many_or_too_old(tmp_path: Path):
    where = store(tmp_path, max_bytes=3 * 4096 + 2 * 8192)
    paths = {age: kept_since(where, f"model{age}", age) for age in (300.0, 100.0, 200.0)}
    ancient = kept_since(where, "ancient", DAY + 1)
    where.open("empty", "this")

    where.trim()

    assert [paths[age].exists() for age in (100.0, 200.0, 300.0)] == [True, True, False]
    assert not ancient.exists()


def test_without_room_everything_is_removed(tmp_path: Path):
    kept_since(store(tmp_path), "tiny", 0.0)
    off = store(tmp_path, max_bytes=0)

    off.trim()

    assert list((tmp_path / "kept").iterdir()) == []
    assert off.open("tiny", "this") is None


def test_package_that_is_forgotten_leaves_nothing(tmp_path: Path):
    where = store(tmp_path)
    path = kept_since(where, "tiny", 0.0)
    other = kept_since(where, "other", 0.0)

    where.forget("tiny")
    where.forget("never there")

    assert not path.exists()
    assert other.exists()


def test_directory_that_others_may_read_is_not_used(tmp_path: Path):
    path = kept_since(store(tmp_path), "tiny", 0.0)
    path.chmod(0o755)

    assert store(tmp_path).open("tiny", "this") is None


@pytest.mark.parametrize("max_bytes", [0, 1, 1 << 20])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, max_bytes: int):
    path = kept_since(store(tmp_path), "tiny", 2 * DAY)
    (path / "notes").write_text("somebody else's")
    elsewhere = tmp_path / "elsewhere"
    (path / "stage1").symlink_to(elsewhere)
    for directory in (elsewhere, tmp_path / "kept" / "mine"):
        directory.mkdir(mode=0o700)
        (directory / "manifest").write_text("somebody else's")
    (tmp_path / "kept" / ("0" * 32)).symlink_to(elsewhere)

    store(tmp_path, max_bytes).trim()

    assert [entry.name for entry in path.iterdir()] == ["notes"]
    assert (elsewhere / "manifest").exists()
    assert (tmp_path / "kept" / "mine" / "manifest").exists()


def test_place_that_others_may_change_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = kept_since(store(tmp_path), "tiny", 2 * DAY)
    (tmp_path / "kept").chmod(0o777)
    assert store(tmp_path).open("tiny", "this") is None
    (tmp_path / "kept").chmod(0o700)
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    (tmp_path / "kept").symlink_to("elsewhere")
    assert store(tmp_path).open("tiny", "this") is None
    store(tmp_path).trim()
    store(tmp_path).forget("tiny")

    assert "is not private to its owner" in caplog.text
    assert (tmp_path / "elsewhere" / path.name / "manifest").exists()


def test_files_that_cannot_be_removed_are_told_of_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = opened(store(tmp_path))
    (kept.path / "manifest").mkdir()
    (kept.path / "manifest" / "file").touch()

    assert kept.read() is None
    kept.clear()
    assert "cannot be removed" in caplog.text


def test_what_is_closed_removes_nothing(tmp_path: Path):
    path = kept_since(store(tmp_path), "tiny", 0.0)
    kept = opened(store(tmp_path))
    kept.close()

    kept.clear()

    assert (path / "manifest").exists()


def test_deployment_is_not_turned_away_because_another_looks_through_them(tmp_path: Path):
    where = store(tmp_path)
    kept_since(where, "tiny", 0.0)
    found: list[KeptPrefixes | None] = []
    opening = threading.Thread(target=lambda: found.append(where.open("tiny", "this")))
    fd = prefix_store._lock(where._path_of("tiny"))
    assert fd is not None
    with where._looking:  # As `trim` does.
        opening.start()
        os.close(fd)
    opening.join()

    assert found != [None]


def test_place_that_cannot_be_made_is_told_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "kept").write_text("a file")

    assert store(tmp_path).open("tiny", "this") is None
    assert "KV is not kept" in caplog.text
    store(tmp_path).trim()


@pytest.mark.parametrize("how", ["others may enter it", "a link to elsewhere", "a file"])
def test_a_directory_that_cannot_be_used_is_left_alone_and_told_of(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    where = store(tmp_path)
    opened(where, "other").close()
    path = where._path_of("tiny")
    if how == "others may enter it":
        path.mkdir()
        path.chmod(0o755)
    elif how == "a file":
        path.write_text("x")
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")

    assert where.open("tiny", "this") is None

    assert str(path) in caplog.text
    assert path.exists()


def test_a_directory_that_another_deployment_has_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = opened(store(tmp_path))
    assert store(tmp_path).open("tiny", "this") is None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    kept.close()
