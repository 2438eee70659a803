"""A disk that really fails under a package: a loop device whose backing file loses its end while weights stream."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from teengined.core.errors import PackageError
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import build_package, stage_of
from tests.fakes.separate_device import cpu_device

OPTIONS = StreamOptions(read_chunk_bytes=65536, timeout_seconds=20)
DISK_BYTES = 64 << 20


def call(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disk(tmp_path):
    """Yield (mount point, backing file) of a small file system of its own."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not shutil.which("losetup"):
        pytest.skip("mounting a loop device needs root, mkfs.ext4 and losetup")
    backing, mount = tmp_path / "disk.img", tmp_path / "mnt"
    mount.mkdir()
    backing.touch()
    os.truncate(backing, DISK_BYTES)
    call("mkfs.ext4", "-q", str(backing))
    try:
        loop = call("losetup", "--find", "--show", str(backing))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device here: {error.stderr.strip()}")
    try:
        call("mount", loop, str(mount))
        yield mount, backing
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            call("umount", "--lazy", str(mount))
        call("losetup", "--detach", loop)


def run_rounds(weights, num_rounds):
    for _ in range(num_rounds):
        for group in weights.groups:
            weights.acquire(group.index)
            weights.release(group.index)


def test_a_disk_that_fails_while_streaming_is_told_with_the_unit_and_never_hangs(disk):
    mount, backing = disk
    package = build_package(mount / "package", num_layers=8, rows=1000)
    os.sync()
    weights = StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package, streamed=("*",)),
        device=cpu_device(),
        options=OPTIONS,
    )
    weights.open()
    run_rounds(weights, 1)

    os.truncate(backing, 4096)

    with pytest.raises(PackageError, match=r"unit (layer\.\d|head): reading .*Input/output error"):
        run_rounds(weights, 3)
    weights.close()


def test_a_disk_that_fails_while_loading_refuses_the_load(disk):
    mount, backing = disk
    package = build_package(mount / "package", num_layers=8, rows=1000)
    os.sync()
    weights = StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package),
        device=cpu_device(),
        options=OPTIONS,
    )

    os.truncate(backing, 4096)

    with pytest.raises(PackageError, match="Input/output error"):
        weights.open()


def test_a_file_system_without_direct_reads_streams_through_the_cache_and_says_so():
    directory = Path("/dev/shm") / f"teengine-test-{os.getpid()}"
    package = build_package(directory, num_layers=2)
    try:
        weights = StageWeights(
            package_dir=directory,
            manifest=package.manifest,
            stage=stage_of(package, streamed=("*",)),
            device=cpu_device(),
            options=OPTIONS,
        )
        weights.open()
        run_rounds(weights, 2)
        refused = not can_read_directly(package.path_of("head"))
        assert any("no O_DIRECT" in note for note in weights.notes) == refused
        weights.close()
    finally:
        shutil.rmtree(directory)


def can_read_directly(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True
