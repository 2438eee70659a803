import importlib
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from teengined.cli.main import SECTIONS, cli

ENTRIES = [(name, entry) for verbs in SECTIONS.values() for name, entry in verbs.items()]
HEAVY = ("zmq", "msgpack", "torch", "transformers", "jinja2", "numpy", "asyncio", "teengined.protocol", "gguf")


def test_help_imports_nothing_heavy():
    program = (
        "import sys, json\n"
        "from click.testing import CliRunner\n"
        "before = set(sys.modules)\n"
        "from teengined.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['--help'])\n"
        "json.dump([result.exit_code, sorted(set(sys.modules) - before)], sys.stdout)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)

    code, modules = json.loads(ran.stdout)

    assert code == 0
    assert not [name for name in modules if name.startswith(HEAVY)]
    assert not [name for name in modules if name.startswith("teengined.cli.verbs")]


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=[name for name, _ in ENTRIES])
def test_the_table_says_of_each_verb_what_the_verb_says_itself(name: str, entry):
    command = importlib.import_module(f"teengined.cli.verbs.{entry.module}").command

    assert isinstance(command, click.Command)
    assert command.short_help == entry.help
    assert command.name == (entry.module if entry.alias else name)


@pytest.mark.parametrize("name", [name for name, _ in ENTRIES])
def test_every_verb_explains_itself(name: str):
    result = CliRunner().invoke(cli, [name, "--help"])

    assert result.exit_code == 0
    assert result.output.startswith(
        f"Usage: teengine {name}" if result.output.startswith("Usage: teengine") else "Usage: "
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program_and_its_variable(shell: str):
    ran = subprocess.run(
        [sys.executable, "-m", "teengined.cli.main", "completion", shell], capture_output=True, check=True, timeout=30
    )

    assert b"_TEENGINE_COMPLETE" in ran.stdout


def test_an_unknown_verb_is_refused_with_code_2():
    ran = subprocess.run([sys.executable, "-m", "teengined.cli.main", "fly"], capture_output=True, timeout=30)

    assert ran.returncode == 2
    assert ran.stderr.decode() == "error: No such command 'fly'.\nhint: teengine --help\n"


@pytest.mark.parametrize(("slip", "meant"), [("rnu", "run"), ("lod", "load"), ("plugin", "plugins")])
def test_a_slip_of_the_hand_is_told_what_was_meant(slip: str, meant: str):
    result = CliRunner().invoke(cli, [slip])

    assert result.exit_code == 2
    assert f"No such command '{slip}'; did you mean '{meant}'?" in result.output


def test_no_daemon_is_exit_code_3_with_the_way_to_start_one(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "teengined.cli.main", "ps", "--endpoint", str(tmp_path / "none.sock")],
        capture_output=True,
        timeout=30,
    )

    assert ran.returncode == 3
    assert b"hint: start it with" in ran.stderr
    assert ran.stdout == b""


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "0", "-1"])
def test_a_timeout_that_never_ends_is_a_wrong_use(seconds):
    ran = subprocess.run(
        [sys.executable, "-m", "teengined.cli.main", "--timeout", seconds, "ps"], capture_output=True, timeout=30
    )

    assert ran.returncode == 2
    assert b"error: Invalid value for '--timeout'" in ran.stderr


def test_a_closed_pipe_ends_the_command_quietly():
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m teengined.cli.main completion zsh | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=30,
    )

    assert ran.stderr == b""
    assert ran.stdout in (b"141\n", b"0\n")  # 0 where everything fitted into the pipe before it closed
