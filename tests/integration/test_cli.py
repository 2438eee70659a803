"""The command line as a user meets it: real processes against a real daemon (whose workers repeat the prompt)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.fakes.running_daemon import RunningDaemon
from tests.fakes.terminal import Terminal

TEENGINE = [sys.executable, "-m", "teengined.cli.main"]
SECONDS = 30.0

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.01"') as running:
        yield running


def teengine(daemon: RunningDaemon, *words: str | bytes, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "TEENGINE_HOST": daemon.endpoint}
    return subprocess.run([*TEENGINE, *words], input=stdin, env=environment, capture_output=True, timeout=SECONDS)


def test_run_loads_the_model_and_answers_the_prompt(daemon):
    ran = teengine(daemon, "run", "bytes", "hello", "--raw", "--max-tokens", "8")

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == b"hellohel\n"
    assert b"cut off after 8 tokens" in ran.stderr


def test_a_pipe_is_the_prompt_and_goes_through_the_chat_template(daemon):
    ran = teengine(daemon, "run", "bytes", "--system", "short", stdin=b"hello")

    assert ran.stdout == b"[system]short\n"


def test_verbose_tells_timings_apart_from_the_answer(daemon):
    ran = teengine(daemon, "run", "bytes", "hello", "--raw", "--max-tokens", "4", "--verbose")

    assert ran.stdout == b"hell\n"
    assert b"first token" in ran.stderr
    assert b"tokens/s" in ran.stderr


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("run", "bytes", "hi", "--temperature", "-1"), 2, b"error: temperature must be between 0 and 100"),
        (("run", "bytes", ""), 2, b"error: the prompt is empty"),
        (("run", "nothing", "hi"), 4, b"hint: "),
        (("run", "./tiny", "hi"), 4, b"hint: `teengine convert ./tiny` makes a package of it"),
        (("run", "org/tiny", "hi"), 4, b"hint: `teengine pull org/tiny` gets it"),
        (("convert", "./missing"), 1, b"error: there is no directory or file /"),
        (("verify", "./missing", "--store", "/none"), 2, b"error: there is no directory /none"),
        (("load", "bytes", "--name", "x", "--draft", "no", "--speculation", "auto"), 4, b"load the draft model first"),
        (("show", "nothing"), 4, b"error: no model named 'nothing'"),
        (("plan", "bytes", "--context", "9999999"), 2, b"error: "),
        (("plan", "bytes", "--context", "9" * 30), 2, b"error: plan_model: a number is out of range"),
        (("load", "bytes", "--name", "a\nb \x1b[31m"), 2, b"cannot name a model"),
        (("load", "bytes", "--name", "../again"), 2, b"cannot name a model"),
        (("run", "bytes", b"\xff"), 2, b"error: generate: a text is not valid Unicode"),
        (("plan", "bytes", "--device", "cpu:7"), 2, b"cpu:7"),
        (("plan", "bytes", "--policy", "fairest"), 78, b"fairest"),
        (("rm", "nothing"), 4, b"hint: "),
        (("unload", "nothing"), 4, b"error: "),
        (("unload", "byte"), 4, b"hint: did you mean bytes?"),
    ],
)
def test_what_cannot_be_done_is_told_in_two_lines_with_its_exit_code(daemon, words, code, complaint):
    ran = teengine(daemon, *words)

    assert ran.returncode == code, ran.stderr
    assert complaint in ran.stderr
    assert ran.stdout == b""
    assert b"Traceback" not in ran.stderr


def test_plan_explains_and_predicts(daemon):
    told = teengine(daemon, "plan", "bytes").stdout.decode()
    written = json.loads(teengine(daemon, "plan", "bytes", "--device", "cpu:1", "--json").stdout)

    assert "tokens/s" in told
    assert "lower bound" in told
    assert written["schema"] == "teengine.plan/v1"
    assert [stage["device_id"] for stage in written["plan"]["stages"]] == ["cpu:1"]


def test_every_listing_speaks_json(daemon):
    for verb in ("ls", "ps", "plugins", "config", "doctor"):
        written = json.loads(teengine(daemon, verb, "--json").stdout)

        assert written["schema"] == f"teengine.{verb}/v1"
        assert written["items"], verb


def test_a_model_is_loaded_listed_and_unloaded(daemon):
    assert teengine(daemon, "load", "bytes", "--name", "twin", "--context", "64").returncode == 0
    assert b"twin" in teengine(daemon, "ps", "-q").stdout.split()

    assert teengine(daemon, "unload", "twin").returncode == 0
    assert b"twin" not in teengine(daemon, "ps", "-q").stdout.split()


def test_status_doctor_and_version_find_the_daemon(daemon):
    assert f"pid {daemon.process.pid}" in teengine(daemon, "status").stdout.decode()
    assert "teengined  not running" not in teengine(daemon, "version").stdout.decode()
    assert "cpu:1 speed" in teengine(daemon, "doctor").stdout.decode()


def test_config_tells_each_origin(daemon):
    items = json.loads(teengine(daemon, "config", "show", "--json").stdout)["items"]
    origins = {item["key"]: item["origin"] for item in items}

    assert origins["worker.ping_interval"] == f"file {daemon.config_file}"
    assert origins["planning.policy"] == "default"


def test_a_wrong_configuration_is_exit_code_78_with_the_nearest_key(daemon, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text("[daemon]\nruntime_dri = '/x'\n")

    ran = teengine(daemon, "config", "validate", str(file))

    assert ran.returncode == 78
    assert b"runtime_dir" in ran.stderr


def test_shells_complete_model_names(daemon):
    environment = {
        **os.environ,
        "TEENGINE_HOST": daemon.endpoint,
        "_TEENGINE_COMPLETE": "bash_complete",
        "COMP_WORDS": "teengine run by",
        "COMP_CWORD": "2",
    }

    ran = subprocess.run(TEENGINE, env=environment, capture_output=True, timeout=SECONDS)

    assert ran.stdout == b"plain,bytes\n"


def test_an_interrupt_stops_a_single_answer_with_130(daemon):
    environment = {**os.environ, "TEENGINE_HOST": daemon.endpoint}
    command = [*TEENGINE, "run", "bytes", "hello", "--raw", "--max-tokens", "2000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(5) == b"hello"

    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=SECONDS)

    assert process.returncode == 130
    assert b"Traceback" not in told
    _wait_until_idle(daemon)


def _wait_until_idle(daemon: RunningDaemon) -> None:
    deadline = time.monotonic() + SECONDS
    with daemon.client() as client:
        while client.status().num_running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.status().num_running == 0


def test_a_terminal_gets_a_chat_where_an_interrupt_stops_the_answer_only(daemon, tmp_path):
    environment = {**os.environ, "TEENGINE_HOST": daemon.endpoint, "TERM": "dumb", "XDG_STATE_HOME": str(tmp_path)}
    terminal = Terminal([*TEENGINE, "run", "bytes", "--max-tokens", "2000"], environment)

    terminal.wait_for(">>> ")
    terminal.type("hi\n")
    terminal.wait_for("[user]hi")
    terminal.wait_for(">>> ")
    terminal.type("x" * 1500 + "\n")
    terminal.wait_for("xxx\r\n")  # the terminal's echo
    terminal.wait_for("[user]")
    terminal.type("\x03")
    terminal.wait_for(">>> ")
    terminal.type("/bye\n")

    assert terminal.exit_code() == 0
    _wait_until_idle(daemon)
