"""Files of a package, opened once and read by range.

The one place here that meets read errors of the operating system; each is told as an error that names the unit.
"""

import errno
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from teengined.core.errors import DiskFailed, PackageError
from teengined.core.model import ALIGNMENT_BYTES, UnitSpec

__all__ = ["PackageFile", "PackageFiles"]

logger = logging.getLogger(__name__)

_MEND = "check the disk (`dmesg`), run `teengine verify`, and convert the model again if it fails"
# An EIO may be a path that fails over or a sector that the device remaps; a second one is a broken disk.
_READ_ATTEMPTS = 2
# What a disk, or what stands for one, says when it is it that fails, and not the caller.
_DISK_ERRORS = frozenset(
    {errno.EIO, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ENODATA, errno.ESTALE, errno.ETIMEDOUT, errno.EUCLEAN}
)
_LOOK_AT_DISK = "check the disk (`dmesg`, `teengine doctor`); when it is mended, load the model again"

PositionedRead = Callable[[int, Sequence[memoryview], int], int]
"""As `os.preadv`: file descriptor, buffers, offset -> bytes read."""


class PackageFile:
    """One open file. Reads may come from any thread."""

    def __init__(self, path: Path, *, direct_io: bool, preadv: PositionedRead = os.preadv) -> None:
        """Open the file, past the page cache where `direct_io` is set and the file system can.

        Raises:
            PackageError: it cannot be opened.
        """
        self._path = path
        self._preadv = preadv
        try:
            self._cached_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PackageError(f"cannot open {path.name} of the package: {error.strerror}", hint=_MEND) from error
        status = os.fstat(self._cached_fd)
        self._identity = _identity(status)
        self._change_time_ns = status.st_ctime_ns
        self._num_links = status.st_nlink
        self._was_read_again = False
        self._direct_fd = self._open_direct() if direct_io else None
        self._drop_cached = direct_io and self._direct_fd is None

    @property
    def size_bytes(self) -> int:
        """Size when it was opened."""
        return self._identity[0]

    @property
    def note(self) -> str:
        """What people should know of this file, or nothing."""
        if os.fstat(self._cached_fd).st_nlink == 0:
            return f"{self._path.name} was removed or replaced on disk while in use; the open file is read on"
        return f"{self._path.name} is read through the page cache: no O_DIRECT here" if self._drop_cached else ""

    def read(self, offset_bytes: int, target: memoryview, what: str) -> None:
        """Fill `target` (page aligned, whole pages) from a page boundary of the file; `what` is named in errors."""
        fd = self._cached_fd if self._direct_fd is None else self._direct_fd
        self._fill(fd, offset_bytes, target, what)
        if self._drop_cached:
            # Asked for direct reads and refused: at least do not let weights push everything else out of memory.
            os.posix_fadvise(self._cached_fd, offset_bytes, len(target), os.POSIX_FADV_DONTNEED)

    def read_cached(self, offset_bytes: int, target: memoryview, what: str) -> None:
        """Fill `target`, of any size and alignment, from any offset through the page cache."""
        self._fill(self._cached_fd, offset_bytes, target, what)

    def announce(self, offset_bytes: int, num_bytes: int) -> None:
        """Tell the kernel that `read_cached` will ask for this range, so that it fetches several at once."""
        os.posix_fadvise(self._cached_fd, offset_bytes, num_bytes, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self, what: str) -> None:
        """Refuse bytes of a file that was written to since it was opened."""
        if _identity(os.fstat(self._cached_fd)) != self._identity:
            raise PackageError(
                f"{what}: {self._path.name} changed on disk while in use",
                hint="unload the model, run `teengine verify`, and load it again",
            )

    def take_suspicion(self) -> bool:
        """Say, once for each cause, whether bytes may not be what they were although size and time are.

        A read that had to be repeated is one; the other is a file whose inode changed while its time stayed, as a copy
        that keeps times leaves it. Only its removal, which changes the inode too, is none.
        """
        status = os.fstat(self._cached_fd)
        is_changed = status.st_ctime_ns != self._change_time_ns and status.st_nlink == self._num_links
        self._change_time_ns, self._num_links = status.st_ctime_ns, status.st_nlink
        is_suspect, self._was_read_again = is_changed or self._was_read_again, False
        return is_suspect

    def close(self) -> None:
        """Close the descriptors. Reads must have ended."""
        for fd in (self._cached_fd, self._direct_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._cached_fd, self._direct_fd = -1, None

    def _open_direct(self) -> int | None:
        """Return a descriptor that reads past the page cache, or None where the file system refuses."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return None
        page = mmap.mmap(-1, ALIGNMENT_BYTES)
        try:
            # Some file systems take the flag at open and refuse it at the first read.
            os.preadv(fd, [page], 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                os.close(fd)
                return None
        finally:
            page.close()
        return fd

    def _fill(self, fd: int, offset_bytes: int, target: memoryview, what: str) -> None:
        done = 0
        while done < len(target):
            num_read = self._read_once(fd, offset_bytes + done, target[done:], what)
            if num_read == 0:
                raise PackageError(
                    f"{what}: {self._path.name} ends after {offset_bytes + done} bytes, before the unit does",
                    hint=_MEND,
                )
            done += num_read
            if done % ALIGNMENT_BYTES:
                # The rest of a short direct read is not aligned any more.
                fd = self._cached_fd

    def _read_once(self, fd: int, offset_bytes: int, target: memoryview, what: str) -> int:
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return self._preadv(fd, [target], offset_bytes)
            except OSError as error:
                is_disk = error.errno in _DISK_ERRORS
                if is_disk and attempt < _READ_ATTEMPTS:
                    logger.warning("%s: read %s at %d again: %s", what, self._path, offset_bytes, error.strerror)
                    self._was_read_again = True
                    continue
                problem = f"{what}: reading {self._path.name} at {offset_bytes} failed: {error.strerror}"
                raise (
                    DiskFailed(problem, hint=_LOOK_AT_DISK) if is_disk else PackageError(problem, hint=_MEND)
                ) from error
        raise AssertionError("the last attempt returns or raises")


class PackageFiles:
    """The files that hold some units of a package, by name."""

    def __init__(self, package_dir: Path, units: Iterable[UnitSpec], *, direct_io: bool) -> None:
        """Open each file once.

        Raises:
            PackageError: one is missing or shorter than its units say.
        """
        self._files: dict[str, PackageFile] = {}
        try:
            for unit in units:
                if unit.file not in self._files:
                    self._files[unit.file] = PackageFile(package_dir / unit.file, direct_io=direct_io)
                _check_inside(unit, self._files[unit.file])
        except PackageError:
            self.close()
            raise

    def of(self, unit: UnitSpec) -> PackageFile:
        """Return the file that holds `unit`."""
        return self._files[unit.file]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the notes of all files."""
        return tuple(file.note for file in self._files.values() if file.note)

    def close(self) -> None:
        """Close all. Safe to call twice."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _check_inside(unit: UnitSpec, file: PackageFile) -> None:
    end = unit.offset_bytes + unit.size_bytes
    if end > file.size_bytes:
        raise PackageError(
            f"unit {unit.id}: {unit.file} has {file.size_bytes} bytes, but the unit ends at {end}", hint=_MEND
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_size, status.st_mtime_ns, status.st_ino)
