"""A file of slots for contents of KV blocks, each checked by its digest when it is read again.

The one place that meets the spool disk's errors. What goes wrong here costs computing again and nothing else, so every
failure is one `SpoolFailure` with a sentence for people.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from teengined.core.model import ALIGNMENT_BYTES

__all__ = ["SpoolFailure", "SpoolFile", "digest_of"]

_DIGEST_BYTES = 16
_PRIVATE = 0o600
# An EIO may be a path that fails over; a second one is a broken disk.
_READ_ATTEMPTS = 2

PositionedRead = Callable[[int, Sequence[memoryview], int], int]
"""As `os.preadv`."""
PositionedWrite = Callable[[int, Sequence[memoryview], int], int]
"""As `os.pwritev`."""


class SpoolFailure(Exception):
    """A slot could not be written or read; its message is for people."""


def digest_of(content: memoryview) -> bytes:
    """Return what tells whether bytes are still what was written."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


class SpoolFile:
    """Slots of `slot_bytes`, a multiple of the page size. Reads and writes may come from any thread."""

    def __init__(
        self,
        path: Path,
        slot_bytes: int,
        *,
        preadv: PositionedRead = os.preadv,
        pwritev: PositionedWrite = os.pwritev,
    ) -> None:
        """Open the file, or make it, readable by its owner only; past the page cache where the file system can.

        Raises:
            SpoolFailure: it cannot be opened, or belongs to somebody else.
        """
        assert slot_bytes % ALIGNMENT_BYTES == 0, "slots are whole pages"
        self._slot_bytes = slot_bytes
        self._preadv, self._pwritev = preadv, pwritev
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = _open_direct(path, flags)
        except OSError as error:
            raise SpoolFailure(f"cannot open the spool file {path}: {error.strerror}") from error
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            os.close(self._fd)
            raise SpoolFailure(f"the spool file {path} is not private to its owner")

    def write(self, slot: int, content: memoryview) -> bytes:
        """Write a slot and return the digest of its content.

        Raises:
            SpoolFailure: the disk is full, or will not.
        """
        offset, done = slot * self._slot_bytes, 0
        try:
            while done < self._slot_bytes:
                done += self._write_pages(content[done:], offset + done)
        except OSError as error:
            raise SpoolFailure(f"writing to the spool failed: {error.strerror}") from error
        return digest_of(content)

    def _write_pages(self, content: memoryview, offset: int) -> int:
        num_written = self._pwritev(self._fd, [content], offset)
        if num_written % ALIGNMENT_BYTES or num_written <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # A part of a page was the disk's last.
        return num_written

    def read(self, slot: int, target: memoryview, digest: bytes) -> None:
        """Read a slot and hold it to its digest.

        Raises:
            SpoolFailure: it cannot be read, or is not what was written.
        """
        offset, done = slot * self._slot_bytes, 0
        while done < self._slot_bytes:
            num_read = self._read_once(target[done:], offset + done)
            if num_read <= 0:
                raise SpoolFailure("the spool file ends before its slot does")
            done += num_read
        if digest_of(target) != digest:
            raise SpoolFailure("a slot of the spool file was altered")

    def _read_once(self, target: memoryview, offset: int) -> int:
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return self._preadv(self._fd, [target], offset)
            except OSError as error:
                if error.errno != errno.EIO or attempt == _READ_ATTEMPTS:
                    raise SpoolFailure(f"reading the spool failed: {error.strerror}") from error
        raise SpoolFailure("reading the spool failed")

    def close(self) -> None:
        """Close the file. Reads and writes must have ended."""
        os.close(self._fd)


def _open_direct(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, _PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, _PRIVATE)
