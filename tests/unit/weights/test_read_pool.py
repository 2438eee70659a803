import os
import threading

import pytest
import torch

from teengined.core.errors import InternalError, PackageCorrupt
from teengined.weights.digests import DigestCheck
from teengined.weights.package_files import PackageFiles
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget
from tests.fakes.package_builder import build_package
from tests.fakes.separate_device import cpu_device


@pytest.fixture
def package(tmp_path):
    return build_package(tmp_path, rows=200)


@pytest.fixture
def pool(package):
    files = PackageFiles(package.directory, package.manifest.units, direct_io=True)
    pool = ReadPool(files, num_threads=3, chunk_bytes=8192, digests=DigestCheck(enabled=True))
    yield pool
    assert pool.close(10)
    files.close()


def read_units(pool, package, *unit_ids):
    """Read the units and return the finished read and the bytes of each."""
    done = threading.Event()
    device = cpu_device()
    buffers = [device.allocate(package.unit(unit_id).size_bytes) for unit_id in unit_ids]
    targets = [
        UnitTarget(unit=package.unit(unit_id), memory=buffer.numpy().data)
        for unit_id, buffer in zip(unit_ids, buffers, strict=True)
    ]
    read = GroupRead(targets, lambda _: done.set())
    pool.submit(read)
    assert done.wait(10)
    return read, [buffer.clone() for buffer in buffers]


def test_units_arrive_whole_through_many_chunks(pool, package):
    read, (first, second) = read_units(pool, package, "layer.0", "layer.1")

    assert read.error is None
    for content, unit_id in ((first, "layer.0"), (second, "layer.1")):
        unit = package.unit(unit_id)
        stored = package.path_of(unit_id).read_bytes()[unit.offset_bytes :][: unit.size_bytes]
        assert torch.equal(content, torch.frombuffer(bytearray(stored), dtype=torch.uint8))


def test_the_number_of_reads_is_the_number_of_chunks(pool, package):
    read, _ = read_units(pool, package, "layer.0")

    assert read.num_reads == -(-package.unit("layer.0").size_bytes // 8192)


def test_a_corrupt_unit_among_good_ones_fails_the_read_by_name(pool, package):
    with package.path_of("layer.1").open("r+b") as file:
        file.seek(package.unit("layer.1").offset_bytes)
        file.write(b"\xff\xfe\xfd")
    package.path_of("layer.1").touch()

    read, _ = read_units(pool, package, "layer.1", "layer.0")

    assert read.error is not None
    assert "layer.1" in read.error.message or "layer.0" in read.error.message


def test_a_bit_flipped_before_opening_is_a_corrupt_package(package):
    with package.path_of("layer.1").open("r+b") as file:
        file.seek(package.unit("layer.1").offset_bytes)
        file.write(b"\xff\xfe\xfd")
    files = PackageFiles(package.directory, package.manifest.units, direct_io=True)
    pool = ReadPool(files, num_threads=2, chunk_bytes=8192, digests=DigestCheck(enabled=True))

    read, _ = read_units(pool, package, "layer.0", "layer.1")

    assert isinstance(read.error, PackageCorrupt)
    assert "layer.1" in read.error.message
    assert pool.close(10)
    files.close()


def test_a_read_of_nothing_is_done_at_once(pool):
    done = threading.Event()

    pool.submit(GroupRead([], lambda _: done.set()))

    assert done.is_set()


def test_what_is_submitted_after_closing_never_blocks_the_close(package):
    files = PackageFiles(package.directory, package.manifest.units, direct_io=True)
    pool = ReadPool(files, num_threads=1, chunk_bytes=4096, digests=DigestCheck(enabled=True))

    assert pool.close(10)
    assert pool.close(10)
    files.close()


def test_an_unexpected_failure_in_a_thread_reaches_the_reader(pool, package):
    done = threading.Event()
    unit = package.unit("layer.0")
    # A target of the wrong size for its page-aligned chunks: the kernel cannot write to read-only memory.
    read = GroupRead([UnitTarget(unit=unit, memory=memoryview(bytes(unit.size_bytes)))], lambda _: done.set())

    pool.submit(read)

    assert done.wait(10)
    assert isinstance(read.error, InternalError)


def test_a_file_altered_under_its_old_time_is_found_by_its_digests_at_the_next_read(pool, package):
    read_units(pool, package, "layer.0")
    path, unit = package.path_of("layer.0"), package.unit("layer.0")
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        with path.open("r+b") as file:
            file.seek(unit.offset_bytes + 5)
            file.write(bytes([path.read_bytes()[unit.offset_bytes + 5] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with path.open("r+b") as file:
        file.seek(unit.offset_bytes)
        file.write(b"x" * 64)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    read, _ = read_units(pool, package, "layer.0")

    assert isinstance(read.error, PackageCorrupt)
