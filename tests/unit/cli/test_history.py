import stat
from pathlib import Path

import pytest

from teengined.cli.history import MAX_ENTRIES, history_file, load_history, remember


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "teengine" / "history"


def test_the_file_is_in_the_state_directory_of_the_user():
    assert history_file({"XDG_STATE_HOME": "/s"}, Path("/h")) == Path("/s/teengine/history")
    assert history_file({"XDG_STATE_HOME": "relative"}, Path("/h")) == Path("/h/.local/state/teengine/history")
    assert history_file({}, Path("/h")) == Path("/h/.local/state/teengine/history")


def test_entries_come_back_in_their_order_whatever_is_in_them(path: Path):
    entries = ["one", "two\nlines", "thr\x1bee", "vier \udcff", "五"]

    for entry in entries:
        remember(path, entry)

    assert load_history(path) == entries


def test_only_the_user_can_read_the_file(path: Path):
    path.parent.mkdir(parents=True)
    path.write_text('"old"\n')
    path.chmod(0o644)

    remember(path, "new")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.iterdir()] == ["history"]
    assert load_history(path) == ["old", "new"]


def test_a_link_is_replaced_and_not_followed(path: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('"kept"\n')
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)

    remember(path, "new")

    assert elsewhere.read_text() == '"kept"\n'
    assert not path.is_symlink()


def test_the_oldest_entries_go_first(path: Path):
    path.parent.mkdir(parents=True)
    path.write_text("".join(f'"{number}"\n' for number in range(MAX_ENTRIES)))

    remember(path, "new")

    entries = load_history(path)
    assert (len(entries), entries[0], entries[-1]) == (MAX_ENTRIES, "1", "new")


@pytest.mark.parametrize("entry", ["", "  ", "x" * 5000])
def test_nothing_and_pasted_texts_are_not_kept(path: Path, entry: str):
    remember(path, entry)

    assert not path.exists()


def test_the_same_line_again_is_kept_once(path: Path):
    for entry in ("one", "one", "two", "one"):
        remember(path, entry)

    assert load_history(path) == ["one", "two", "one"]


@pytest.mark.parametrize("content", [b"no json\n", b"\xff\n", b"[" * 5000, b'"' + b"x" * 30_000_000])
def test_a_file_of_another_program_counts_as_none(path: Path, content: bytes):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    assert load_history(path) == []


def test_what_is_no_text_is_left_out(path: Path):
    path.parent.mkdir(parents=True)
    path.write_text('1\n"one"\nnull\n')

    assert load_history(path) == ["one"]
