"""A minimal io_uring: reads go in, tags come out. Only what the comparison needs, by raw system calls of Linux.

Layouts and numbers: the kernel's include/uapi/linux/io_uring.h.
"""

import ctypes
import mmap
import os
import struct
from types import TracebackType
from typing import Any, Self

__all__ = ["Uring"]

_SETUP, _ENTER = 425, 426
_OFF_SQ_RING, _OFF_SQES = 0, 0x10000000
_ENTER_GETEVENTS = 1
_OP_READ = 22
_SQE_BYTES, _CQE_BYTES = 64, 16
_PARAMS_BYTES = 120
# struct io_uring_params: ten words, then the offsets of the submission and of the completion ring, ten words each.
_SQ_OFFSETS, _CQ_OFFSETS = 40, 80


class Uring:
    """A ring for a number of reads in flight. Use as a context, from one thread."""

    def __init__(self, num_entries: int) -> None:
        """Set the ring up.

        Raises:
            OSError: the kernel has none, or does not allow it here.
        """
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        params = bytearray(_PARAMS_BYTES)
        buffer = (ctypes.c_char * _PARAMS_BYTES).from_buffer(params)
        self._fd = self._call(_SETUP, num_entries, buffer)
        num_sq, num_cq = struct.unpack_from("II", params)
        self._sq = struct.unpack_from("8I", params, _SQ_OFFSETS)  # head, tail, mask, entries, flags, dropped, array
        self._cq = struct.unpack_from("8I", params, _CQ_OFFSETS)  # head, tail, mask, entries, overflow, cqes
        size = max(self._sq[6] + 4 * num_sq, self._cq[5] + _CQE_BYTES * num_cq)
        self._ring = mmap.mmap(self._fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFF_SQ_RING)
        self._sqes = mmap.mmap(
            self._fd, num_sq * _SQE_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFF_SQES
        )
        self._sq_mask, self._cq_mask = self._word(self._sq[2]), self._word(self._cq[2])

    def read(self, descriptor: int, buffer: mmap.mmap, offset_bytes: int, *, tag: int) -> None:
        """Start reading into all of `buffer`."""
        tail = self._word(self._sq[1])
        index = tail & self._sq_mask
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        entry = struct.pack("BBHiQQIIQ", _OP_READ, 0, 0, descriptor, offset_bytes, address, len(buffer), 0, tag)
        self._sqes[index * _SQE_BYTES : (index + 1) * _SQE_BYTES] = entry.ljust(_SQE_BYTES, b"\0")
        struct.pack_into("I", self._ring, self._sq[6] + 4 * index, index)
        struct.pack_into("I", self._ring, self._sq[1], (tail + 1) & 0xFFFFFFFF)
        self._call(_ENTER, self._fd, 1, 0, 0, None, 0)

    def wait(self) -> int:
        """Return the tag of a read that is done.

        Raises:
            OSError: that read failed.
        """
        head = self._word(self._cq[0])
        while head == self._word(self._cq[1]):
            self._call(_ENTER, self._fd, 0, 1, _ENTER_GETEVENTS, None, 0)
        tag, result, _ = struct.unpack_from("QiI", self._ring, self._cq[5] + _CQE_BYTES * (head & self._cq_mask))
        struct.pack_into("I", self._ring, self._cq[0], (head + 1) & 0xFFFFFFFF)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return tag

    def __enter__(self) -> Self:
        """Return the ring."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._ring.close()
        self._sqes.close()
        os.close(self._fd)

    def _word(self, offset: int) -> int:
        return struct.unpack_from("I", self._ring, offset)[0]

    def _call(self, number: int, *arguments: Any) -> int:
        result = self._libc.syscall(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
