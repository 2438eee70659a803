"""The chat as a person meets it: a real process on a pseudo-terminal, with a daemon that answers from a script."""

import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from teengined.cli.history import load_history
from teengined.core.errors import ContextTooLong
from teengined.core.request import FinishReason, Usage
from teengined.protocol import messages as wire
from tests.fakes.running_daemon import wait_until
from tests.fakes.scripted_daemon import ScriptedDaemon
from tests.fakes.terminal import Terminal
from tests.unit.cli.test_listing_verbs import DEPLOYMENT

PROMPT = ">>> "
USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    streamed_bytes=0,
    bound_seconds_per_token=0.0,
)
ACCEPTED = wire.Accepted(request_id="r1", num_prompt_tokens=1, context_tokens=64)
FINISHED = wire.Finished(request_id="r1", sequence=1, reason=FinishReason.STOP, usage=USAGE)


def chunk(text: str = "", **more) -> wire.TokenChunk:
    return wire.TokenChunk(request_id="r1", sequence=0, token_ids=(1,), text=text, **more)


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    with tempfile.TemporaryDirectory(prefix="te-") as directory:
        running = ScriptedDaemon(Path(directory))
        running.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))
        running.answer(wire.Cancel, wire.Done())
        running.script[wire.Generate] = lambda asked: [ACCEPTED, chunk(f"<{asked.messages[-1].content}>"), FINISHED]
        yield running
        running.close()


@pytest.fixture
def sit_down(daemon: ScriptedDaemon, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts a chat; leaving it is part of each test."""
    terminals: list[Terminal] = []

    def start(*words: str, **environment: str) -> Terminal:
        command = [sys.executable, "-m", "teengined.cli.main", "run", "tiny", *words]
        plain = {"TERM": "xterm", "TEENGINE_HOST": daemon.endpoint, "XDG_STATE_HOME": str(tmp_path)}
        terminal = Terminal(command, {**os.environ, **plain, **environment})
        terminals.append(terminal)
        terminal.wait_for(PROMPT)
        return terminal

    yield start
    for terminal in terminals:
        terminal.hang_up()


def asked(daemon: ScriptedDaemon) -> list[wire.Generate]:
    return [message for message in daemon.asked if isinstance(message, wire.Generate)]


def contents(daemon: ScriptedDaemon) -> list[list[str]]:
    return [[turn.content for turn in request.messages] for request in asked(daemon)]


def leave(terminal: Terminal) -> None:
    terminal.type("/bye\r")
    assert terminal.exit_code() == 0


def test_a_conversation_goes_on_and_carries_what_was_said(daemon, sit_down):
    terminal = sit_down("--system", "be brief")

    terminal.type("one\r")
    terminal.wait_for("<one>")
    terminal.wait_for(PROMPT)
    terminal.type("two\r")
    terminal.wait_for("<two>")
    terminal.wait_for(PROMPT)
    leave(terminal)

    assert contents(daemon) == [["be brief", "one"], ["be brief", "one", "<one>", "two"]]
    assert all(request.parse for request in asked(daemon))


def test_lines_are_edited_and_recalled(daemon, sit_down):
    terminal = sit_down()

    terminal.type("onx\x7fe\r")  # a typing error and its correction
    terminal.wait_for("<one>")
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[A!\r")  # the arrow key upwards
    terminal.wait_for("<one!>")
    terminal.wait_for(PROMPT)
    leave(terminal)


def test_three_quotes_hold_lines_together(daemon, sit_down):
    terminal = sit_down()

    terminal.type('"""one\r')
    terminal.wait_for("... ")
    terminal.type('two"""\r')
    terminal.wait_for(PROMPT)
    leave(terminal)

    assert contents(daemon) == [["one\ntwo"]]


def test_an_interrupt_stops_the_answer_and_keeps_program_and_conversation(daemon, sit_down):
    script = daemon.script[wire.Generate]
    daemon.answer(wire.Generate, ACCEPTED, chunk("half an ans"))
    terminal = sit_down()

    terminal.type("one\r")
    terminal.wait_for("half an ans")
    terminal.press_until("\x03", PROMPT)
    wait_until(lambda: wire.Cancel(request_id="r1") in daemon.asked, "the request was cancelled")
    daemon.script[wire.Generate] = script
    terminal.type("two\r")
    terminal.wait_for("<two>")
    terminal.wait_for(PROMPT)
    leave(terminal)

    assert contents(daemon)[1] == ["one", "half an ans", "two"]


def test_impatient_interrupts_do_not_end_the_program(daemon, sit_down):
    daemon.answer(wire.Generate, ACCEPTED, chunk("half an ans"))
    terminal = sit_down()

    terminal.type("one\r")
    terminal.wait_for("half an ans")
    for _ in range(50):
        terminal.type("\x03")
    terminal.press_until("\x03", PROMPT)
    terminal.type("\r")
    terminal.wait_for(PROMPT)
    leave(terminal)


def test_an_interrupt_before_the_request_has_a_name_cancels_it_all_the_same(daemon, sit_down):
    asked_once, interrupted = threading.Event(), threading.Event()

    def slow(_message: wire.Generate) -> list[object]:
        asked_once.set()
        assert interrupted.wait(30)
        return [ACCEPTED, chunk("late")]

    daemon.script[wire.Generate] = slow
    terminal = sit_down()

    terminal.type("one\r")
    assert asked_once.wait(30)
    terminal.type("\x03")
    terminal.wait_for("^C")  # the terminal's echo: the signal is sent
    interrupted.set()
    terminal.wait_for(PROMPT)
    wait_until(lambda: wire.Cancel(request_id="r1") in daemon.asked, "the request was cancelled")
    leave(terminal)


def test_an_interrupt_at_the_prompt_gives_the_line_up(daemon, sit_down):
    terminal = sit_down()

    terminal.type("not this")
    terminal.wait_for("not this")
    terminal.press_until("\x03", PROMPT)
    terminal.type("but this\r")
    terminal.wait_for("<but this>")
    terminal.wait_for(PROMPT)
    leave(terminal)

    assert contents(daemon) == [["but this"]]


def test_the_end_of_input_leaves(daemon, sit_down):
    terminal = sit_down()

    terminal.type("\x04")

    assert terminal.exit_code() == 0


def test_parameters_are_set_for_the_answers_to_come(daemon, sit_down):
    terminal = sit_down("--seed", "3")

    terminal.type("/set temperature 0.5\r")
    terminal.wait_for("temperature         0.5")
    terminal.wait_for(PROMPT)
    terminal.type("/set temprature 1\r")
    terminal.wait_for("did you mean temperature?")
    terminal.wait_for(PROMPT)
    terminal.type("one\r")
    terminal.wait_for(PROMPT)
    leave(terminal)

    (request,) = asked(daemon)
    assert (request.sampling.temperature, request.sampling.seed) == (0.5, 3)


def test_a_conversation_that_no_longer_fits_is_told_how_to_go_on(daemon, sit_down):
    error = ContextTooLong("90 tokens exceed 64", hint="load it with a larger --context")
    daemon.answer(
        wire.Generate, wire.ErrorReply(code=error.code, message=error.message, hint=error.hint, retryable=False)
    )
    terminal = sit_down()

    terminal.type("one\r")
    terminal.wait_for("error: 90 tokens exceed 64")
    terminal.wait_for("hint: /clear")
    terminal.wait_for(PROMPT)
    leave(terminal)


@pytest.mark.parametrize(
    ("environment", "seen"),
    [({}, "\x1b[2mhm\x1b[0m\r\n\r\n"), ({"NO_COLOR": "1"}, "(thinking) hm\r\n\r\n"), ({"TERM": "dumb"}, "(thinking) ")],
)
def test_reasoning_is_shown_apart_and_calls_are_marked(daemon, sit_down, environment: dict[str, str], seen: str):
    call = wire.ToolCallDelta(index=0, id="1", name="now", arguments="{}")
    daemon.answer(wire.Generate, ACCEPTED, chunk("Yes", reasoning="hm", tool_calls=(call,)), FINISHED)
    terminal = sit_down(**environment)

    terminal.type("one\r")
    terminal.wait_for(seen)
    terminal.wait_for("Yes\r\n[calls now {}]")
    terminal.wait_for(PROMPT)
    leave(terminal)


def test_what_was_typed_is_there_in_the_next_chat_and_nobody_else_can_read_it(daemon, sit_down, tmp_path: Path):
    first = sit_down()
    first.type("one\r")
    first.wait_for("<one>")
    first.wait_for(PROMPT)
    leave(first)
    second = sit_down()

    second.type("\x1b[A\x1b[A\r")
    second.wait_for("<one>")
    second.wait_for(PROMPT)
    leave(second)

    file = tmp_path / "teengine" / "history"
    assert load_history(file) == ["one", "/bye", "one", "/bye"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_no_history_leaves_nothing_behind(daemon, sit_down, tmp_path: Path):
    terminal = sit_down("--no-history")

    terminal.type("secret\r")
    terminal.wait_for(PROMPT)
    leave(terminal)

    assert list(tmp_path.rglob("history*")) == []


def test_a_history_that_cannot_be_kept_is_told_once(daemon, sit_down, tmp_path: Path):
    (tmp_path / "teengine").write_text("a file where the directory should be")
    terminal = sit_down()

    terminal.type("one\r")
    terminal.wait_for("the history cannot be kept")
    terminal.wait_for("<one>")
    terminal.wait_for(PROMPT)
    terminal.type("two\r")
    terminal.wait_for("<two>")
    assert "cannot be kept" not in terminal.seen
    terminal.wait_for(PROMPT)
    leave(terminal)
