"""Choices among kernels between processes: real files, real products; the clock of each is as the test says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Measures as a worker does, but for the seconds: kernel `argv[1]` takes the least of them.
MEASURES = """
import json, sys
import torch
from teengined.interfaces.registry import PluginRegistry
from teengined_plugins.precisions import int8
now, calls = 0.0, []
def counted(name, kernel):
    def run(*operands):
        global now
        now += 0.001 if name == sys.argv[1] else 0.003
        calls.append(name)
        return kernel(*operands)
    return run
int8._KERNELS.update({name: counted(name, kernel) for name, kernel in int8._KERNELS.items()})
strategy = PluginRegistry.load().precision("int8")
strategy.choice._clock = lambda: now
parts = strategy.encode(torch.ones(32, 64))
product = strategy.linear(torch.ones(2, 64).bfloat16(), parts, None)
assert torch.equal(product, torch.full((2, 32), 64.0).bfloat16())
print(json.dumps(calls))
"""
ADDS = """
import sys
from pathlib import Path
from teengined_plugins.precisions.kept_choices import KeptChoices
kept = KeptChoices(lambda: Path(sys.argv[1]))
kept.winner(("read",))
print("ready", flush=True)
sys.stdin.readline()
for number in range(400):
    kept.keep(("adds", number), "native")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user who has compiled nothing and kept nothing yet. Stock kernels: compiling takes seconds."""
    left_out = ("TEENGINE_NO_KEPT_CHOICES", "CACHE_DIRECTORY")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path), "TEENGINE_NO_NATIVE": "1"}
    return {**inherited, **own}


def _calls(fastest: str, environment: dict[str, str]) -> list[str]:
    """Return the kernels that a process called, in order, for its first product of a kind."""
    command = [sys.executable, "-c", MEASURES, fastest]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert outcome.returncode == 0, outcome.stderr
    return list(json.loads(outcome.stdout))


def test_a_third_process_does_not_measure(environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        assert len(_calls("packed", environment)) > 2

    assert _calls("blocks", environment) == ["packed"]

    (kept,) = (tmp_path / "teengine" / "native").iterdir()
    lines = kept.read_text().splitlines()
    assert [json.loads(line)["kernel"] for line in lines] == ["packed", "packed"]


def test_processes_that_disagree_are_followed_by_one_that_measures(environment: dict[str, str]) -> None:
    _calls("packed", environment)
    _calls("blocks", environment)

    assert len(_calls("blocks", environment)) > 2
    assert _calls("packed", environment) == ["blocks"]


def test_every_process_measures_where_keeping_is_switched_off(environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(3):
        assert len(_calls("packed", {**environment, "TEENGINE_NO_KEPT_CHOICES": "1"})) > 2

    assert list(tmp_path.iterdir()) == []


def test_lines_of_two_processes_that_write_at_once_stay_whole(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "choices.jsonl"
    command = [sys.executable, "-c", ADDS, str(file)]
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # Both wait by now, and begin together.
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0

    calls = [json.loads(line)["call"][1] for line in file.read_text().splitlines()]
    assert sorted(calls) == sorted([*range(400)] * 2)
