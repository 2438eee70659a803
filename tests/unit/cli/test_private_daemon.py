"""The private daemon's edges; that it runs and ends is held by the demo's own tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from teengined.cli.private_daemon import private_daemon, runtime_directory
from teengined.core.errors import ConfigError


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="te-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)


def test_the_directory_is_private_and_gone_afterwards(base: Path):
    with runtime_directory() as directory:
        assert directory.parent == base
        assert directory.stat().st_mode & 0o777 == 0o700

    assert list(base.iterdir()) == []


def test_a_long_runtime_directory_is_not_taken_since_sockets_need_short_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))

    with runtime_directory() as directory:
        assert long not in directory.parents


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_stays(base: Path):
    beyond_any_pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    (base / f"teengine-private-{beyond_any_pid}-left").mkdir()
    (base / "teengine-private-1-live").mkdir()

    with runtime_directory():
        pass

    assert [path.name for path in base.iterdir()] == ["teengine-private-1-live"]


def test_a_daemon_that_refuses_its_configuration_is_told_in_its_own_words(base: Path, tmp_path: Path):
    configuration = tmp_path / "teengined.toml"
    configuration.write_text("[daemon]\nruntime_dri = '/x'\n")

    with (
        pytest.raises(ConfigError, match="did you mean 'runtime_dir'") as caught,
        runtime_directory() as directory,
        private_daemon(configuration, directory, tmp_path / "log"),
    ):
        raise AssertionError("it must not get ready")

    assert "teengine config show" in caught.value.hint
