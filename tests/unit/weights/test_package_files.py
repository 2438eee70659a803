import errno
import mmap
import os
from pathlib import Path

import pytest

from teengined.core.errors import DiskFailed, PackageError
from teengined.weights.package_files import PackageFile, PackageFiles
from tests.fakes.package_builder import build_package

CONTENT = bytes(range(256)) * 16 * 4


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "units.bin"
    path.write_bytes(CONTENT)
    return path


def aligned(num_bytes):
    return memoryview(mmap.mmap(-1, num_bytes))


class FlakyRead:
    """`os.preadv` whose first calls fail."""

    def __init__(self, failures, number=errno.EIO):
        self.failures, self.number, self.calls = failures, number, 0

    def __call__(self, fd, buffers, offset):
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(self.number, os.strerror(self.number))
        return os.preadv(fd, buffers, offset)


@pytest.mark.parametrize("direct_io", [True, False])
def test_read_fills_the_target_from_the_offset(path, direct_io):
    file = PackageFile(path, direct_io=direct_io)
    target = aligned(8192)

    file.read(4096, target, "unit x")

    assert bytes(target) == CONTENT[4096:12288]
    file.close()


def test_direct_reads_leave_nothing_in_the_page_cache_note(path):
    file = PackageFile(path, direct_io=True)

    assert file.note == ""
    file.close()


def test_a_file_system_without_direct_reads_is_read_through_the_cache_and_says_so():
    # A file system that refuses O_DIRECT wherever the tests run: procfs.
    file = PackageFile(Path("/proc/self/stat"), direct_io=True)

    assert "no O_DIRECT" in file.note
    file.close()


def test_one_read_error_is_tried_again(path):
    flaky = FlakyRead(failures=1)
    file = PackageFile(path, direct_io=True, preadv=flaky)
    target = aligned(4096)

    file.read(0, target, "unit x")

    assert bytes(target) == CONTENT[:4096]
    assert flaky.calls == 2
    file.close()


def test_a_second_read_error_is_told_with_the_unit_and_the_cause(path):
    file = PackageFile(path, direct_io=True, preadv=FlakyRead(failures=2))

    with pytest.raises(DiskFailed, match=r"unit x: .*units\.bin.*Input/output error") as caught:
        file.read(0, aligned(4096), "unit x")

    assert isinstance(caught.value.__cause__, OSError)
    file.close()


def test_other_read_errors_are_not_tried_again(path):
    flaky = FlakyRead(failures=1, number=errno.EBADF)
    file = PackageFile(path, direct_io=True, preadv=flaky)

    with pytest.raises(PackageError) as caught:
        file.read(0, aligned(4096), "unit x")

    assert type(caught.value) is PackageError
    assert flaky.calls == 1
    file.close()


def test_a_read_beyond_the_end_is_told_not_awaited(path):
    file = PackageFile(path, direct_io=True)

    with pytest.raises(PackageError, match=r"unit x.*ends after 16384 bytes"):
        file.read(12288, aligned(8192), "unit x")
    file.close()


def test_a_read_that_ends_inside_a_page_is_told_too(path):
    os.truncate(path, 5000)
    file = PackageFile(path, direct_io=True)

    with pytest.raises(PackageError, match="ends after 5000 bytes"):
        file.read(0, aligned(8192), "unit x")
    file.close()


def test_a_short_read_goes_on_where_it_stopped(path):
    file = PackageFile(path, direct_io=True, preadv=lambda fd, b, o: os.preadv(fd, [b[0][:4096]], o))
    target = aligned(12288)

    file.read(0, target, "unit x")

    assert bytes(target) == CONTENT[:12288]
    file.close()


def test_a_file_that_was_written_to_is_refused(path):
    file = PackageFile(path, direct_io=True)
    os.utime(path, ns=(1, 1))

    with pytest.raises(PackageError, match=r"units\.bin changed on disk"):
        file.check_unchanged("unit x")
    file.close()


def test_a_removed_file_is_read_on_and_noted(path):
    file = PackageFile(path, direct_io=True)
    path.unlink()
    target = aligned(4096)

    file.read(0, target, "unit x")
    file.check_unchanged("unit x")

    assert bytes(target) == CONTENT[:4096]
    assert "removed or replaced" in file.note
    file.close()


def test_a_missing_file_is_told_by_name(tmp_path):
    package = build_package(tmp_path)
    package.path_of("layer.0").unlink()

    with pytest.raises(PackageError, match=r"layers\.bin"):
        PackageFiles(tmp_path, package.manifest.units, direct_io=True)


def test_a_file_shorter_than_its_units_is_refused_at_open_with_the_units_name(tmp_path):
    package = build_package(tmp_path)
    os.truncate(package.path_of("head"), package.unit("head").offset_bytes + 100)

    with pytest.raises(PackageError, match="unit head"):
        PackageFiles(tmp_path, package.manifest.units, direct_io=True)


def test_closing_gives_every_descriptor_back(tmp_path):
    package = build_package(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = PackageFiles(tmp_path, package.manifest.units, direct_io=True)

    files.close()
    files.close()

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_read_that_had_to_be_repeated_makes_the_file_suspect_once(path):
    file = PackageFile(path, direct_io=True, preadv=FlakyRead(failures=1))
    assert not file.take_suspicion()

    file.read(0, aligned(4096), "unit x")

    assert file.take_suspicion()
    assert not file.take_suspicion()
    file.close()


def test_a_file_rewritten_under_its_old_time_is_suspect(path):
    before = path.stat()
    file = PackageFile(path, direct_io=True)
    wait_for_another_time(path)
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    file.check_unchanged("unit x")
    assert file.take_suspicion()
    file.close()


def test_a_file_that_was_removed_is_not_suspect(path):
    file = PackageFile(path, direct_io=True)
    wait_for_another_time(path)
    path.unlink()

    assert not file.take_suspicion()
    file.close()


def wait_for_another_time(path):
    """Return when a change of the file would carry another time than its last: the kernel's clock has a step."""
    probe = path.with_name("probe")
    while True:
        probe.touch()
        if probe.stat().st_ctime_ns > path.stat().st_ctime_ns:
            return
