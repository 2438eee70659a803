from pathlib import Path

import pytest
import torch

from teengined.core.errors import DriverError, OutOfDeviceMemory
from teengined_drivers.host_buffers import HostBuffers

MIB = 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _resident_bytes_at(address: int) -> int:
    """Resident bytes of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    return 0


def test_freed_pages_go_back_to_the_system_though_a_view_lives() -> None:
    buffers = HostBuffers()
    buffer = buffers.map(64 * MIB)
    buffer.fill_(1)
    view = buffer[5:10]
    filled = _resident_bytes()

    buffers.unmap(buffer)

    assert filled - _resident_bytes() > 60 * MIB
    assert view.tolist() == [0] * 5


def test_address_range_goes_with_the_last_view() -> None:
    buffers = HostBuffers()
    buffer = buffers.map(8 * MIB)
    address = buffer.data_ptr()
    buffers.unmap(buffer)
    buffer.fill_(1)  # a mistake of the caller's, which must hurt nobody else

    del buffer

    assert _resident_bytes_at(address) < 8 * MIB


def test_pages_come_only_when_touched() -> None:
    before = _resident_bytes()

    buffer = HostBuffers().map(512 * MIB)

    assert buffer.numel() == 512 * MIB
    assert _resident_bytes() - before < 8 * MIB


def test_size_that_no_address_space_has_is_told_as_memory() -> None:
    with pytest.raises(OutOfDeviceMemory, match="the system has no"):
        HostBuffers().map(2**60)


def test_part_of_a_buffer_is_not_a_buffer() -> None:
    buffers = HostBuffers()
    buffer = buffers.map(8192)

    with pytest.raises(DriverError):
        buffers.unmap(buffer[4096:])

    assert buffers.unmap(buffer) == 8192


def test_closing_gives_every_page_back() -> None:
    buffers = HostBuffers()
    kept = [buffers.map(16 * MIB).fill_(1) for _ in range(3)]
    filled = _resident_bytes()

    buffers.unmap_all()

    assert filled - _resident_bytes() > 45 * MIB
    assert all(int(buffer[0]) == 0 for buffer in kept)


def test_buffer_starts_as_zeros() -> None:
    assert torch.count_nonzero(HostBuffers().map(10_000)) == 0
