"""Every installed plugin against the one rule of import: the daemon loads them all, and has no torch."""

import subprocess
import sys

PROGRAM = """
import sys
from teengined.interfaces.registry import PluginRegistry
registry = PluginRegistry.load()
for driver in registry.drivers().values():
    driver.availability()
    driver.discover()
for source in registry.sources().values():
    source.matches("nobody/nothing")
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "numpy", "gguf"})
print(",".join(heavy))
"""


def test_loading_every_plugin_and_finding_devices_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == ""
