"""A daemon inside a memory limit that the kernel enforces gives away no more than that."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_limit import MemoryGroup
from teengined.core.errors import NotAllowed

MIB = 1 << 20
LIMIT_BYTES = 1024 * MIB
CONFIG = """
[[devices]]
id = "cpu:0"
memory = "8GiB"
[[devices]]
id = "cpu:1"
memory = "24GiB"
"""


def test_budgets_beyond_a_control_groups_limit_are_lowered_and_the_limit_is_named(tmp_path: Path) -> None:
    (tmp_path / "teengined.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "teengined.daemon.main", "--check", "--config", str(tmp_path / "teengined.toml")]
    try:
        with MemoryGroup(LIMIT_BYTES) as group:
            ran = subprocess.run(group.command(command), capture_output=True, text=True, check=False)
    except NotAllowed as refusal:
        pytest.skip(refusal.message)

    assert ran.returncode == 0, ran.stderr
    budgets = [int(number) for number in re.findall(r"cpu:\d: (\d+) bytes", ran.stdout)]
    assert sum(budgets) + (64 + 2 * 256) * MIB <= LIMIT_BYTES
    assert budgets[1] == pytest.approx(3 * budgets[0], abs=8192)
    assert re.search(r"cpu:0: the budget of 8\.6 GB is lowered to .* since .*/teengine-.* allows 1\.1 GB", ran.stderr)
