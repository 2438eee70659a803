"""Memory that is filled once: by one process, to its end, or not at all as far as others are concerned."""

import os

import pytest

from teengined.core.errors import InternalError
from teengined.core.sealed_memory import create_memory, fill_memory, is_sealed, map_memory

PAGE = 4096


@pytest.fixture
def memory():
    descriptor = create_memory("a-test", 3 * PAGE)
    yield descriptor
    os.close(descriptor)


def test_what_was_filled_is_sealed_and_reads_as_it_was_written(memory: int) -> None:
    assert not is_sealed(memory)

    fill_memory(memory, memoryview(b"abc" * PAGE))

    assert is_sealed(memory)
    assert map_memory(memory, 3 * PAGE)[:] == b"abc" * PAGE


def test_what_is_sealed_is_not_written_by_anybody(memory: int) -> None:
    fill_memory(memory, memoryview(bytes(3 * PAGE)))

    with pytest.raises(InternalError, match="sealed before"):
        fill_memory(memory, memoryview(bytes(3 * PAGE)))
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"x", 0)
    with pytest.raises(TypeError, match="readonly"):
        map_memory(memory, 3 * PAGE)[0] = 1  # type: ignore[index]


def test_what_was_half_written_is_not_sealed_and_not_mapped(memory: int) -> None:
    os.pwrite(memory, b"half", 0)

    with pytest.raises(InternalError, match="not sealed"):
        map_memory(memory, 3 * PAGE)


def test_content_of_another_size_is_refused_and_nothing_sealed(memory: int) -> None:
    with pytest.raises(InternalError, match="4096 bytes for shared memory of 12288"):
        fill_memory(memory, memoryview(bytes(PAGE)))
    assert not is_sealed(memory)


def test_nobody_changes_its_size(memory: int) -> None:
    for size in (PAGE, 4 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
