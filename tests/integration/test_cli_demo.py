"""`teengine demo` on a random model: the whole way, and that nothing outlives it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fakes.tiny_models import build_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]

SECONDS = 300.0
END_SECONDS = 60.0


class Place:
    """A model, a state directory that the tests share, and a runtime directory with a short path."""

    def __init__(self, root: Path) -> None:
        sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16}
        self.model = build_tiny_model("llama", root / "made", dtype=torch.bfloat16, **sizes)
        self.state_dir = root / "state"
        self.runtime_base = Path(tempfile.mkdtemp(prefix="te-"))

    def command(self, model: str = "") -> list[str]:
        demo = [sys.executable, "-m", "teengined.cli.main", "demo", model or str(self.model)]
        return [*demo, "--state-dir", str(self.state_dir), "--max-tokens", "12"]

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self.command(), *words],
            env={**os.environ, "XDG_RUNTIME_DIR": str(self.runtime_base)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[int]:
        """Return the ids of processes that know our directories; the daemon, its workers and its measurements do."""
        marks = (str(self.runtime_base).encode(), str(self.state_dir).encode())
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _knows(entry, marks)]


def _knows(process: Path, marks: tuple[bytes, ...]) -> bool:
    try:
        text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    except OSError:
        return False  # It ended, or is another user's.
    return any(mark in text for mark in marks)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("demo"))
    yield made
    shutil.rmtree(made.runtime_base, ignore_errors=True)


def wait_for_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    assert process.stderr is not None
    raise AssertionError(f"{beginning!r} never came: {process.stderr.read()}")


def test_the_demo_runs_a_model_through_devices_smaller_than_it_and_leaves_nothing(place: Place):
    process = place.start("--verbose")

    told, problems = process.communicate(timeout=SECONDS)

    assert process.returncode == 0, problems
    together = int(told.partition("together ")[2].partition("%")[0])
    assert together < 100
    assert "streamed for each token" in told
    assert "reached" in told
    assert "first token" in told
    assert list(place.runtime_base.iterdir()) == []
    assert place.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_killed_in_any_way_it_leaves_no_process_behind(place: Place, number: signal.Signals):
    process = place.start()
    wait_for_line(process, "predicted:")
    assert len(place.processes()) > 1

    process.send_signal(number)
    process.communicate(timeout=END_SECONDS)

    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}.get(number, 128 + number)
    deadline = time.monotonic() + END_SECONDS
    while place.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert place.processes() == []
    if number is not signal.SIGKILL:
        assert list(place.runtime_base.iterdir()) == []


def test_it_ends_with_the_process_that_started_it(place: Place):
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *place.command()],
        env={**os.environ, "XDG_RUNTIME_DIR": str(place.runtime_base)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_for_line(parent, "predicted:")

    parent.kill()
    parent.communicate(timeout=END_SECONDS)

    deadline = time.monotonic() + END_SECONDS
    while place.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert place.processes() == []
    # The one that was killed before could not tidy up; this one did it for both.
    assert list(place.runtime_base.iterdir()) == []


def test_a_model_that_cannot_be_had_is_one_error_and_no_daemon(place: Place):
    ran = subprocess.run(place.command(str(place.model / "nothing")), capture_output=True, timeout=SECONDS)

    assert ran.returncode == 1
    assert ran.stderr.startswith(b"error: ")
    assert b"Traceback" not in ran.stderr
