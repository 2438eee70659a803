"""Sealed memory as a tensor: read in place, let go of at once, and never a dangling address."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from teengined.core.errors import InternalError
from teengined.core.sealed_memory import create_memory, fill_memory
from teengined.weights.mapped_memory import drop_pages, tensor_of_memory

MIB = 1 << 20
WRITE = """
from teengined.core.sealed_memory import create_memory, fill_memory
from teengined.weights.mapped_memory import tensor_of_memory
descriptor = create_memory("a-test", 4096)
fill_memory(descriptor, memoryview(bytes(4096)))
tensor_of_memory(descriptor, 4096)[0] = 1
"""


def shared(size_bytes: int = MIB) -> torch.Tensor:
    descriptor = create_memory("mapped-test", size_bytes)
    fill_memory(descriptor, memoryview(b"\x05" * size_bytes))
    tensor = tensor_of_memory(descriptor, size_bytes)
    os.close(descriptor)
    return tensor


def mapped_bytes() -> int:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [re.match(r"([0-9a-f]+)-([0-9a-f]+)", line) for line in lines if "memfd:mapped-test" in line]
    return sum(int(found[2], 16) - int(found[1], 16) for found in ranges if found)


def test_it_has_every_byte_on_a_page_and_stays_while_a_view_of_it_does() -> None:
    view = shared()[1:]

    assert int(view.sum(dtype=torch.int64)) == 5 * (MIB - 1)
    assert (view.data_ptr() - 1) % 4096 == 0
    assert mapped_bytes() == MIB
    del view
    assert mapped_bytes() == 0


def test_what_is_dropped_is_gone_and_a_forgotten_view_reads_zeros() -> None:
    tensor = shared()
    forgotten = tensor[100:200]

    drop_pages(tensor)

    assert mapped_bytes() == 0
    assert int(forgotten.sum()) == 0


def test_memory_that_is_not_filled_is_no_tensor() -> None:
    descriptor = create_memory("mapped-test", MIB)
    with pytest.raises(InternalError, match="not sealed"):
        tensor_of_memory(descriptor, MIB)
    fill_memory(descriptor, memoryview(bytes(MIB)))
    with pytest.raises(InternalError, match="of another size"):
        tensor_of_memory(descriptor, MIB // 2)
    os.close(descriptor)


def test_whoever_writes_to_it_ends_and_changes_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", WRITE], capture_output=True, check=False)

    assert ended.returncode == -11
