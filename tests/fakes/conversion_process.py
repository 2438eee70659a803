"""Runs the converter as the command line does: a child process that speaks JSON lines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "num_recorded", "run_program", "start_program", "wait_for"]

PATIENCE_SECONDS = 90.0


class Outcome:
    """What a finished run said."""

    def __init__(self, status: int, stdout: str) -> None:
        """Parse the lines; every one of them must be an event."""
        self.status = status
        self.events: list[dict[str, Any]] = [json.loads(line) for line in stdout.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]


def start_program(*arguments: str | Path) -> "subprocess.Popen[str]":
    """Start `python -m teengined.modelpack` in this tree."""
    return subprocess.Popen(
        [sys.executable, "-m", "teengined.modelpack", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((".", "drivers", "plugins", *sys.path))},
    )


def run_program(*arguments: str | Path) -> Outcome:
    """Run it to its end."""
    process = start_program(*arguments)
    stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return Outcome(process.returncode, stdout)


def kill_after(process: "subprocess.Popen[str]", ready: Callable[[], bool], number: signal.Signals) -> int:
    """Send a signal once `ready`, and return the exit status."""
    wait_for(ready)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode


def num_recorded(store: Path, name: str) -> int:
    """Return how many files the journal of a running conversion calls complete."""
    try:
        return max(len((store / f".converting-{name}" / "journal.jsonl").read_text().splitlines()) - 1, 0)
    except FileNotFoundError:
        return 0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; an assertion names the deadline otherwise."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s"
        time.sleep(0.005)
