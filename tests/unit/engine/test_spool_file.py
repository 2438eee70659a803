import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from teengined.engine.spool_file import SpoolFailure, SpoolFile, digest_of

PAGE = 4096
Call = Callable[[int, Sequence[memoryview], int], int]


def page(number: int) -> memoryview:
    import mmap

    view = memoryview(mmap.mmap(-1, PAGE))
    view[:] = bytes([number]) * PAGE
    return view


def failing(code: int, real: Call, num_good: int = 0, num_bad: int = 99) -> Call:
    """Return a call that fails after some that do not, so many times."""
    calls = 0

    def call(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        if num_good < calls <= num_good + num_bad:
            raise OSError(code, os.strerror(code))
        return real(fd, buffers, offset)

    return call


def test_slot_comes_back_as_it_was_written(tmp_path: Path):
    file = SpoolFile(tmp_path / "spool", PAGE)
    digest = file.write(3, page(7))
    target = page(0)

    file.read(3, target, digest)

    assert (bytes(target), digest) == (bytes(page(7)), digest_of(page(7)))
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o600
    file.close()


def test_what_was_written_is_there_for_the_next_to_open_the_file(tmp_path: Path):
    first = SpoolFile(tmp_path / "spool", PAGE)
    digest = first.write(0, page(7))
    first.close()
    target = page(0)

    SpoolFile(tmp_path / "spool", PAGE).read(0, target, digest)

    assert bytes(target) == bytes(page(7))


@pytest.mark.parametrize("bit", [0, 1000 * 8 + 3, PAGE * 8 - 1])
def test_each_altered_bit_is_noticed(tmp_path: Path, bit: int):
    file = SpoolFile(tmp_path / "spool", PAGE)
    digest = file.write(1, page(7))
    content = bytearray((tmp_path / "spool").read_bytes())
    content[PAGE + bit // 8] ^= 1 << bit % 8
    (tmp_path / "spool").write_bytes(content)

    with pytest.raises(SpoolFailure, match="altered"):
        file.read(1, page(0), digest)


def test_file_that_was_cut_is_noticed(tmp_path: Path):
    file = SpoolFile(tmp_path / "spool", PAGE)
    digest = file.write(1, page(7))
    os.truncate(tmp_path / "spool", PAGE)

    with pytest.raises(SpoolFailure, match="ends before"):
        file.read(1, page(0), digest)


def test_full_disk_is_a_failure_with_the_systems_word(tmp_path: Path):
    file = SpoolFile(tmp_path / "spool", PAGE, pwritev=failing(errno.ENOSPC, os.pwritev))

    with pytest.raises(SpoolFailure, match="No space left"):
        file.write(0, page(1))


def test_part_of_a_page_is_a_full_disk(tmp_path: Path):
    file = SpoolFile(tmp_path / "spool", PAGE, pwritev=lambda fd, buffers, offset: 100)

    with pytest.raises(SpoolFailure, match="No space left"):
        file.write(0, page(1))


def test_read_error_is_tried_once_more(tmp_path: Path):
    SpoolFile(tmp_path / "spool", PAGE).write(0, page(7))
    digest = digest_of(page(7))

    SpoolFile(tmp_path / "spool", PAGE, preadv=failing(errno.EIO, os.preadv, num_bad=1)).read(0, page(0), digest)
    broken = SpoolFile(tmp_path / "spool", PAGE, preadv=failing(errno.EIO, os.preadv))
    with pytest.raises(SpoolFailure, match="Input/output"):
        broken.read(0, page(0), digest)


def test_file_that_others_may_read_is_refused(tmp_path: Path):
    (tmp_path / "spool").touch(mode=0o644)

    with pytest.raises(SpoolFailure, match="not private"):
        SpoolFile(tmp_path / "spool", PAGE)


def test_link_is_not_followed(tmp_path: Path):
    (tmp_path / "real").touch(mode=0o600)
    (tmp_path / "spool").symlink_to(tmp_path / "real")

    with pytest.raises(SpoolFailure, match="cannot open"):
        SpoolFile(tmp_path / "spool", PAGE)
