"""The daemon, its clients and the discovery of plugins stay small: torch is for workers and converters only."""

import json
import os
import subprocess
import sys

from tests.house.tree import ROOT, imported_name, shipped_files

LIGHT_PACKAGES = (
    "teengined.cli",
    "teengined.client",
    "teengined.core",
    "teengined.daemon",
    "teengined.interfaces",
    "teengined.kvcache",
    "teengined.placement",
    "teengined.protocol",
    "teengined.scheduler",
    "teengined.service",
)
HEAVY_LIBRARIES = ("torch", "transformers")

# Imports each module in turn in a fresh interpreter, and tells which one brought a heavy library first.
PROGRAM = """
import importlib, json, sys
names, heavy = json.loads(sys.argv[1])
for name in names:
    importlib.import_module(name)
    found = [library for library in heavy if library in sys.modules]
    if found:
        sys.exit(f"{name} imports {found}")
"""


def import_all(names: list[str]) -> str:
    """Return what the interpreter said, empty when no heavy library came in."""
    path = os.pathsep.join(str(ROOT / home) for home in ("", "drivers", "plugins"))
    words = [sys.executable, "-c", PROGRAM, json.dumps([names, HEAVY_LIBRARIES])]
    run = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    return run.stderr


def _modules(packages: tuple[str, ...]) -> list[str]:
    names = [imported_name(path) for path in shipped_files() if path.name != "__main__.py"]
    return sorted(name for name in names if any(name == p or name.startswith(f"{p}.") for p in packages))


def test_no_module_of_daemon_client_or_command_line_imports_torch() -> None:
    assert import_all(_modules(LIGHT_PACKAGES)) == ""


def test_no_driver_or_plugin_imports_torch_before_it_is_used() -> None:
    assert import_all(_modules(("teengined_drivers", "teengined_plugins"))) == ""


def test_heavy_import_would_be_noticed() -> None:
    assert "torch imports ['torch']" in import_all(["json", "torch"])
