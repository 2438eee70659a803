"""The registry against distributions that are really installed: made here, found through PYTHONPATH."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from teengined.core.errors import ConfigError, SourceError
from teengined.interfaces.driver import Driver
from teengined.interfaces.registry import PluginRegistry

PROGRAM = """
import sys
from teengined.core.errors import TeengineError
from teengined.interfaces.registry import PluginRegistry
try:
    registry = PluginRegistry.load(sys.argv[1:])
except TeengineError as error:
    print(f"{type(error).__name__}: {error.message} | {error.hint}")
else:
    for item in registry.items():
        print(f"{item.kind}|{item.name}|{item.entry_point}|{item.distribution}")
"""
HEAD = """
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import SchedulingPolicy
from teengined.interfaces.source import ModelSource
"""
POLICY = """
class Policy(SchedulingPolicy):
    name = {name!r}
    def order(self, sequences, now_seconds):
        return [sequence.id for sequence in sequences]
"""
HOOK = """
@hookimpl
def teengine_register_scheduling_policies():
    return {returned}
"""

Install = Callable[..., None]
Load = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Install a distribution of one module with one entry point."""

    def write(code: str, *, name: str = "stranger", entry_point: str = "policy.strange") -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        information = tmp_path / f"{module}-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (information / "entry_points.txt").write_text(f"[teengine]\n{entry_point} = {module}\n")

    return write


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the registry in a process that sees what was installed; return what it prints."""

    def run(*blocked: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM, *blocked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    return run


def test_strangers_plugin_is_registered_beside_the_built_in_ones(install: Install, load: Load) -> None:
    install(HEAD + POLICY.format(name="strange") + HOOK.format(returned="[Policy]"))

    lines = load().splitlines()

    assert "scheduling policy|strange|policy.strange|stranger 1.2" in lines
    assert any(line.startswith("driver|cpu|driver.cpu|teengine ") for line in lines)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (POLICY.format(name="fifo") + HOOK.format(returned="[Policy]"), "'fifo' is a duplicate"),
        (POLICY.format(name="") + HOOK.format(returned="[Policy]"), "no usable name ('')"),
        (POLICY.format(name="Not A Name") + HOOK.format(returned="[Policy]"), "no usable name"),
        (
            "class Policy(SchedulingPolicy):\n    def order(self, s, n):\n        return []\n"
            + HOOK.format(returned="[Policy]"),
            "no usable name (None)",
        ),
        ("class Policy(SchedulingPolicy):\n    name = 'x'\n" + HOOK.format(returned="[Policy]"), "lacks order"),
        (HOOK.format(returned="[str]"), "is no subclass of SchedulingPolicy"),
        (HOOK.format(returned="['fifo']"), "is no subclass of SchedulingPolicy"),
        (HOOK.format(returned="None"), "returned None instead of a list"),
        (HOOK.format(returned="[]"), "registers nothing"),
        (HOOK.format(returned="1 / 0"), "teengine_register_scheduling_policies raised ZeroDivisionError"),
        ("raise RuntimeError('half built')", "cannot be imported from stranger: RuntimeError: half built"),
        ("import not_there", "cannot be imported from stranger: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)", "cannot be imported from stranger: SystemExit"),
        ("def broken(:", "cannot be imported from stranger: SyntaxError"),
        ("x = 1", "registers nothing"),
        (
            POLICY.format(name="x") + "    def __init__(self):\n        raise OSError('no')\n"
            + HOOK.format(returned="[Policy]"),
            "raised when constructed: OSError: no",
        ),
        ("@hookimpl\ndef teengine_register_toasters():\n    return []\n", "its hooks do not match"),
        (
            "@hookimpl\ndef teengine_register_scheduling_policies(toaster):\n    return []\n",
            "its hooks do not match",
        ),
    ],
)  # fmt: skip
def test_broken_plugin_stops_the_load_and_is_named(install: Install, load: Load, code: str, problem: str) -> None:
    install(HEAD + code)

    printed = load()

    assert printed.startswith("PluginError: plugin 'policy.strange' of distribution stranger 1.2: ")
    assert problem in printed
    assert "uninstall stranger" in printed


def test_duplicate_names_both_owners(install: Install, load: Load) -> None:
    install(HEAD + POLICY.format(name="twin") + HOOK.format(returned="[Policy]"), name="first")
    install(
        HEAD + POLICY.format(name="twin") + HOOK.format(returned="[Policy]"), name="second", entry_point="policy.other"
    )

    printed = load()

    assert "plugin 'policy.other' of distribution second 1.2: scheduling policy 'twin' is a duplicate" in printed
    assert "entry point 'policy.strange' of first 1.2" in printed


@pytest.mark.parametrize("blocked", ["policy.strange", "stranger"])
def test_blocked_plugin_is_not_even_imported(install: Install, load: Load, blocked: str) -> None:
    install("raise RuntimeError('imported')")

    printed = load(blocked)

    assert "driver|cpu" in printed
    assert "strange" not in printed


def test_blocking_what_is_not_installed_names_the_nearest(load: Load) -> None:
    assert "did you mean 'driver.cuda'?" in load("driver.cudda")


def test_unknown_name_lists_what_is_installed_and_the_nearest() -> None:
    registry = PluginRegistry.load()

    with pytest.raises(ConfigError, match=r"no precision named 'int9' is installed.*bf16.*int8") as raised:
        registry.precision("int9")

    assert raised.value.hint == "did you mean 'int8'?"


def test_built_in_plugins_of_every_kind_are_found_by_name() -> None:
    registry = PluginRegistry.load()

    assert isinstance(registry.driver("cpu"), Driver)
    assert registry.precision("int8").name == "int8"
    assert registry.transport("shm").reach == "host"
    assert registry.placement_policy("optimal").name == "optimal"
    assert registry.scheduling_policy("fifo").name == "fifo"
    assert registry.source("hub").name == "hub"


def test_mappings_are_in_order_of_names() -> None:
    registry = PluginRegistry.load()
    mappings = [
        registry.drivers(), registry.precisions(), registry.precision_policies(), registry.transports(),
        registry.placement_policies(), registry.scheduling_policies(), registry.sources(),
    ]  # fmt: skip

    assert all(list(mapping) == sorted(mapping) and mapping for mapping in mappings)
    assert sum(map(len, mappings)) == len(registry.items())


def test_source_of_a_reference_is_the_one_that_recognises_it(tmp_path: Path) -> None:
    registry = PluginRegistry.load()

    assert registry.source_for(str(tmp_path)).name == "hf-directory"
    assert registry.source_for(str(tmp_path / "model.gguf")).name == "gguf"
    assert registry.source_for("SomeBody/some-model").name == "hub"


def test_reference_that_no_source_knows_is_refused_with_what_would_be_right() -> None:
    with pytest.raises(SourceError, match="no model reference") as raised:
        PluginRegistry.load().source_for("/no/such/place")

    assert "config.json" in raised.value.hint


def test_source_that_raises_is_named(install: Install, tmp_path: Path) -> None:
    install(
        HEAD
        + "class Source(ModelSource):\n    name = 'a'\n    def matches(self, reference): raise OSError('no')\n"
        + "    def open(self, reference): ...\n"
        + "@hookimpl\ndef teengine_register_sources():\n    return [Source]\n"
    )
    program = (
        "from teengined.interfaces.registry import PluginRegistry\n"
        "try:\n    PluginRegistry.load().source_for('x')\nexcept Exception as error:\n    print(error)\n"
    )

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "source 'a' of stranger 1.2 raised on 'x': OSError: no"
