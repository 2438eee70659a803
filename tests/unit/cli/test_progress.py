import io
import json
from dataclasses import replace

import pytest

from teengined.cli.progress import JsonProgress, LineProgress, Step, TerminalProgress, step_line

STEP = Step(label="pulling 6a0746a1ec1a", done=6_200_000_000, total=9_300_000_000)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_line_has_label_share_bar_amounts_rate_and_time_left():
    step = replace(STEP, bytes_per_second=11e6, eta_seconds=268.0)

    assert step_line(step) == "pulling 6a0746a1ec1a:  66% ▕██████████▋     ▏ 6.2 GB/9.3 GB  11.0 MB/s  4m28s"


def test_steps_that_are_no_bytes_show_their_unit_and_no_rate():
    assert step_line(Step(label="measuring", done=3, total=4, unit="devices")).endswith("3/4 devices")


@pytest.mark.parametrize(("done", "total"), [(0, 0), (5, 0), (9, 3)])
def test_amounts_that_make_no_sense_still_draw(done: int, total: int):
    assert "100%" in step_line(Step(label="x", done=done, total=total))


def test_a_log_gets_a_line_every_five_seconds_and_the_last_one():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)

    for second in range(11):
        clock.seconds = 100.0 + second
        progress.show(Step(label="reading", done=second * 10, total=100))
    progress.close()

    assert [line.split(":")[1].split("%")[0].strip() for line in stream.getvalue().splitlines()] == ["0", "50", "100"]


@pytest.mark.parametrize("sink", [LineProgress, TerminalProgress])
def test_an_end_that_is_told_twice_is_shown_once(sink: type[LineProgress | TerminalProgress]):
    stream, clock = io.StringIO(), Clock()
    progress = sink(stream, clock)
    for done in (0, 100, 100):
        clock.seconds += 10
        progress.show(Step(label="reading", done=done, total=100))
    progress.close()

    assert stream.getvalue().count("100%") == 1


def test_a_job_that_is_done_again_is_shown_again():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    for label in ("reading", "writing", "reading"):
        progress.show(Step(label=label, done=100, total=100))

    assert len(stream.getvalue().splitlines()) == 3


def test_a_job_cut_off_shows_where_it_was():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    progress.show(Step(label="reading", done=0, total=100))
    progress.show(Step(label="reading", done=42, total=100))

    progress.close()

    assert "42%" in stream.getvalue().splitlines()[-1]


def test_a_terminal_redraws_one_line_and_ends_it_once():
    stream, clock = io.StringIO(), Clock()
    progress = TerminalProgress(stream, clock)
    for done in (0, 50, 100):
        clock.seconds += 1
        progress.show(Step(label="reading", done=done, total=100))

    progress.close()
    progress.close()

    assert stream.getvalue().count("\r\x1b[K") == 3
    assert stream.getvalue().count("\n") == 1


def test_rate_and_time_left_are_worked_out_where_the_job_does_not_tell():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(stream, clock)
    progress.show(Step(label="reading", done=0, total=4_000_000))
    clock.seconds += 10
    progress.show(Step(label="reading", done=1_000_000, total=4_000_000))

    assert stream.getvalue().splitlines()[-1].endswith("100 kB/s  30.0 s")


def test_json_lines_hold_every_step():
    stream = io.StringIO()

    JsonProgress(stream).show(STEP)

    assert json.loads(stream.getvalue()) == {
        "event": "progress",
        "label": "pulling 6a0746a1ec1a",
        "done": 6_200_000_000,
        "total": 9_300_000_000,
        "unit": "bytes",
        "bytes_per_second": None,
        "eta_seconds": None,
    }
