import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from teengined.core.errors import AlreadyRunning, ConfigError
from teengined.daemon.runtime_directory import RuntimeDirectory

HOLD = (
    "import sys, pathlib; from teengined.daemon.runtime_directory import RuntimeDirectory;"
    "held = RuntimeDirectory(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Sockets limit how long a runtime directory's name may be, and pytest's own are longer on some machines."""
    with tempfile.TemporaryDirectory(prefix="te-", dir="/tmp") as directory:
        yield Path(directory)


def test_second_owner_is_refused_with_the_first_ones_pid(short_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(short_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        with pytest.raises(AlreadyRunning, match=f"pid {holder.pid}"):
            RuntimeDirectory(short_path / "run")


def test_lock_of_an_owner_that_ended_is_free_again(short_path: Path):
    RuntimeDirectory(short_path).close()

    second = RuntimeDirectory(short_path)

    assert (short_path / "lock").read_text() == f"{os.getpid()}\n"
    second.close()


def test_directory_that_others_may_write_is_refused(short_path: Path):
    short_path.chmod(0o777)

    with pytest.raises(ConfigError, match="others cannot write"):
        RuntimeDirectory(short_path)


def test_link_in_its_place_is_refused(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(ConfigError):
        RuntimeDirectory(tmp_path / "link")
