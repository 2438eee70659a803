"""A daemon that answers from a script, for one test."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.scripted_daemon import ScriptedDaemon


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    # Not under tmp_path: a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="te-") as directory:
        running = ScriptedDaemon(Path(directory))
        yield running
        running.close()
