import os
from pathlib import Path

import pytest

from teengined.service.prefix_key import KEY_BYTES, read_key


def test_key_is_made_once_and_is_its_owners_only(tmp_path: Path):
    path = tmp_path / "state" / "spool.key"

    first = read_key(path, lambda size: b"k" * size)

    assert first == b"k" * KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["spool.key"]
    assert read_key(path, lambda size: b"x" * size) == first


def test_key_that_others_may_read_is_none(tmp_path: Path):
    path = tmp_path / "spool.key"
    path.write_bytes(bytes(KEY_BYTES))
    path.chmod(0o644)

    with pytest.raises(ValueError, match="not private"):
        read_key(path)


@pytest.mark.parametrize("size", [0, KEY_BYTES - 1, KEY_BYTES + 1])
def test_key_of_another_length_is_none(tmp_path: Path, size: int):
    path = tmp_path / "spool.key"
    path.touch(0o600)
    path.write_bytes(bytes(size))

    with pytest.raises(ValueError, match="holds no key"):
        read_key(path)


def test_link_is_not_followed(tmp_path: Path):
    (tmp_path / "elsewhere").touch(0o600)
    (tmp_path / "spool.key").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"):
        read_key(tmp_path / "spool.key")


def test_pipe_is_no_key_and_nobody_waits_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "spool.key", 0o600)

    with pytest.raises(ValueError, match="not private"):
        read_key(tmp_path / "spool.key")
