"""The protocol with the converter, spoken by programs of a few lines in its place."""

import os
import sys
from pathlib import Path

import pytest

from teengined.cli.converter_process import run_modelpack
from teengined.cli.progress import Progress, Step
from teengined.core.errors import InternalError, SourceError

PROGRESS = '{"event": "progress", "phase": "convert", "done": 1, "total": 2, "bytes_per_second": 3.0}'


class Seen(Progress):
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.closed = False

    def show(self, step: Step) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stand a program in for `python`, and return a function that runs it."""

    def run(program: str) -> tuple[dict, Seen]:
        stand_in = tmp_path / "python"
        stand_in.write_text(f"#!{os.path.realpath(sys.executable)}\nimport os, sys\n{program}\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in))
        seen = Seen()
        return run_modelpack(["convert", "x"], "x", seen), seen

    return run


def test_progress_is_shown_and_the_last_event_returned(converter):
    done, seen = converter(
        f"print('''{PROGRESS}'''); print('noise'); print('{{\"event\": \"done\", \"name\": \"x\"}}')"
    )

    assert done["name"] == "x"
    assert seen.closed
    assert seen.steps == [Step(label="convert x", done=1, total=2, bytes_per_second=3.0)]


def test_its_error_is_raised_as_what_it_is(converter):
    told = '{"event": "error", "code": "source_invalid", "message": "no config", "hint": "add one"}'

    with pytest.raises(SourceError, match="no config") as caught:
        converter(f"print('{told}'); sys.exit(1)")

    assert caught.value.hint == "add one"


def test_a_death_without_a_word_is_told_with_its_last_line(converter):
    with pytest.raises(InternalError, match="ended with status 3: out of luck"):
        converter("print('first', file=sys.stderr); print('out of luck', file=sys.stderr); sys.exit(3)")


def test_a_kill_is_told_as_one(converter):
    with pytest.raises(InternalError, match="killed by signal 9"):
        converter("os.kill(os.getpid(), 9)")
