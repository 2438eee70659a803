from pathlib import Path

import psutil
import pytest

from teengined_drivers.host_memory import available_memory_bytes, memory_limit_bytes

GIB = 2**30


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limit_of_a_parent_group_holds_for_its_children(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/system.slice/teengined.service\n")
    _write(tmp_path / "sys/fs/cgroup/system.slice/memory.max", f"{1 * GIB}\n")
    _write(tmp_path / "sys/fs/cgroup/system.slice/teengined.service/memory.max", "max\n")

    assert memory_limit_bytes(tmp_path) == GIB


def test_limit_of_the_first_hierarchy_is_read_too(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n")
    _write(tmp_path / "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", f"{2 * GIB}\n")
    _write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")

    assert memory_limit_bytes(tmp_path) == 2 * GIB


@pytest.mark.parametrize("lines", ["", "0::/elsewhere\n"])
def test_without_limits_it_is_the_machines_memory(tmp_path: Path, lines: str) -> None:
    _write(tmp_path / "proc/self/cgroup", lines)

    assert memory_limit_bytes(tmp_path) == psutil.virtual_memory().total


def test_unlimited_group_does_not_exceed_the_machine(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "4:memory:/\n")
    _write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")

    assert memory_limit_bytes(tmp_path) == psutil.virtual_memory().total


def test_available_memory_is_some_and_no_more_than_there_is() -> None:
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
