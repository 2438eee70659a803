"""What limits a process's memory, in both versions of control groups."""

import pytest

from teengined.core.memory_limits import HostMemory, host_memory

GIB = 1 << 30
MEMINFO = f"MemTotal:  {24 * GIB // 1024} kB\nMemFree: 5 kB\nMemAvailable:  {20 * GIB // 1024} kB\nHugePages_Total: 0\n"
V2 = "/sys/fs/cgroup/system.slice/teengined.service"
V1 = "/sys/fs/cgroup/memory"


def memory(files: dict[str, str]) -> HostMemory:
    return host_memory({"/proc/meminfo": MEMINFO, **files}.get)


def grouped(line: str, **files: object) -> dict[str, str]:
    return {"/proc/self/cgroup": line, **{path: str(value) for path, value in files.items()}}


def test_without_groups_the_machine_is_the_limit() -> None:
    found = memory({})

    assert found == HostMemory(
        total_bytes=24 * GIB, limit_bytes=24 * GIB, available_bytes=20 * GIB, origin="the machine"
    )


@pytest.mark.parametrize("file", ["memory.max", "memory.high"])
def test_a_limit_of_the_second_version_holds_and_is_named(file: str) -> None:
    found = memory(grouped("0::/system.slice/teengined.service\n") | {f"{V2}/{file}": f"{4 * GIB}\n"})

    assert (found.limit_bytes, found.available_bytes, found.origin) == (4 * GIB, 4 * GIB, f"{V2}/{file}")


def test_the_least_of_all_groups_above_holds() -> None:
    files = {f"{V2}/memory.max": str(8 * GIB), "/sys/fs/cgroup/system.slice/memory.max": str(3 * GIB)}

    found = memory(grouped("0::/system.slice/teengined.service\n") | files)

    assert (found.limit_bytes, found.origin) == (3 * GIB, "/sys/fs/cgroup/system.slice/memory.max")


def test_a_limit_of_the_first_version_holds_also_where_only_its_top_is_visible() -> None:
    files = {f"{V1}/memory.limit_in_bytes": str(2 * GIB), f"{V1}/memory.usage_in_bytes": str(GIB)}

    found = memory(grouped("9:name=systemd:/x\n4:cpu,memory:/hidden/by/the/container\n0::/\n") | files)

    assert (found.limit_bytes, found.available_bytes) == (2 * GIB, GIB)


@pytest.mark.parametrize("value", ["max", str((1 << 63) - 4096), "", "garbage"])
def test_what_limits_nothing_is_no_limit(value: str) -> None:
    files = {f"{V1}/memory.limit_in_bytes": value, f"{V2}/memory.max": value}

    found = memory(grouped("4:memory:/\n0::/system.slice/teengined.service\n") | files)

    assert (found.limit_bytes, found.available_bytes) == (24 * GIB, 20 * GIB)


def test_page_cache_that_nobody_uses_counts_as_available() -> None:
    files = {
        f"{V2}/memory.max": str(4 * GIB),
        f"{V2}/memory.current": str(3 * GIB),
        f"{V2}/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
    }

    found = memory(grouped("0::/system.slice/teengined.service\n") | files)

    assert found.available_bytes == 3 * GIB


def test_a_group_above_that_others_have_filled_leaves_nothing() -> None:
    files = {
        f"{V2}/memory.max": str(4 * GIB),
        "/sys/fs/cgroup/system.slice/memory.max": str(8 * GIB),
        "/sys/fs/cgroup/system.slice/memory.current": str(9 * GIB),
    }

    assert memory(grouped("0::/system.slice/teengined.service\n") | files).available_bytes == 0
