"""Buffers that are kept from being swapped out, in a process of their own where a limit is to be met."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from teengined_drivers.host_buffers import HostBuffers

MIB = 1 << 20
UNDER_A_LIMIT = """
import os, resource
import torch
from teengined.core.errors import OutOfDeviceMemory
from teengined_drivers.host_buffers import HostBuffers
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
if os.geteuid() == 0:  # who is root may lock what they like
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    HostBuffers(is_locked=True).map(8 << 20)
except OutOfDeviceMemory as error:
    print(error.message, "|", error.hint)
"""


def locked_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmLck:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture
def buffers() -> HostBuffers:
    try:
        probe = HostBuffers(is_locked=True)
        probe.unmap(probe.map(2 * MIB))
    except Exception as error:  # noqa: BLE001 - whatever forbids it here is the reason of the skip
        pytest.skip(f"memory cannot be locked here: {error}")
    return HostBuffers(is_locked=True)


def test_a_locked_buffer_is_locked_until_it_is_given_back(buffers: HostBuffers) -> None:
    before = locked_bytes()

    buffer = buffers.map(4 * MIB)
    buffer.fill_(1)
    assert locked_bytes() == before + 4 * MIB

    assert buffers.unmap(buffer) == 4 * MIB
    assert locked_bytes() == before


def test_all_are_unlocked_together(buffers: HostBuffers) -> None:
    before = locked_bytes()
    held = [buffers.map(2 * MIB), buffers.map(2 * MIB)]

    buffers.unmap_all()

    assert locked_bytes() == before
    assert len(held) == 2


def test_a_limit_that_forbids_it_is_told_with_its_number_and_what_raises_it() -> None:
    ran = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT], capture_output=True, text=True, check=False)

    assert "8.4 MB of host memory cannot be locked" in ran.stdout, ran.stderr
    assert "the limit on locked memory is 1.0 MB" in ran.stdout
    assert "LimitMEMLOCK=" in ran.stdout
