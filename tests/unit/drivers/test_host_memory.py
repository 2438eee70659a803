from pathlib import Path

import psutil

from teengined_drivers.host_memory import available_memory_bytes, memory_limit_bytes

GIB = 2**30


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_files_are_read_below_the_root_that_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "proc/meminfo", f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {4 * GIB // 1024} kB\n")
    _write(tmp_path / "proc/self/cgroup", "0::/system.slice/teengined.service\n")
    _write(tmp_path / "sys/fs/cgroup/system.slice/memory.max", f"{2 * GIB}\n")
    _write(tmp_path / "sys/fs/cgroup/system.slice/memory.current", f"{GIB}\n")

    assert (memory_limit_bytes(tmp_path), available_memory_bytes(tmp_path)) == (2 * GIB, GIB)


def test_available_memory_is_some_and_no_more_than_there_is() -> None:
    assert 0 < available_memory_bytes() <= memory_limit_bytes() <= psutil.virtual_memory().total
