"""Page-aligned host memory outside the C heap, so that what is freed really returns to the system.

`malloc` keeps and splits what it gets; a worker that frees a 500 MB unit must shrink by 500 MB, or its budget means
nothing. Each buffer is its own anonymous mapping, seen as a uint8 tensor.
"""

import mmap
import threading
from typing import TYPE_CHECKING

from teengined.core.errors import DriverError, OutOfDeviceMemory
from teengined.core.locked_memory import lock_memory, unlock_memory
from teengined.core.quantities import format_bytes
from teengined_drivers.budget import whole_pages

if TYPE_CHECKING:
    import torch

__all__ = ["HostBuffers"]

# Below this a huge page would be mostly empty.
_HUGE_PAGE_BYTES = 2 * 2**20


class HostBuffers:
    """The mappings of one device, by their addresses."""

    def __init__(self, *, is_locked: bool = False) -> None:
        """Start with none. Where `is_locked`, pages stay in memory once they were touched."""
        self._is_locked = is_locked
        self._mappings: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def map(self, num_bytes: int) -> "torch.Tensor":
        """Return a uint8 tensor of `num_bytes` zeros that starts on a page; its pages come when they are touched.

        Raises:
            OutOfDeviceMemory: the system refuses the address space, or to lock it.
        """
        import torch

        mapped_bytes = whole_pages(num_bytes)
        try:
            mapping = mmap.mmap(-1, mapped_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise OutOfDeviceMemory(f"the system has no {format_bytes(mapped_bytes)} of memory: {error}") from error
        if mapped_bytes >= _HUGE_PAGE_BYTES:
            _prefer_huge_pages(mapping)
        buffer = torch.frombuffer(mapping, dtype=torch.uint8, count=num_bytes)
        if self._is_locked:
            lock_memory(buffer.data_ptr(), mapped_bytes)
        with self._lock:
            self._mappings[buffer.data_ptr()] = mapping
        return buffer

    def holds(self, buffer: "torch.Tensor") -> bool:
        """Say whether `buffer` is one of these, whole."""
        return buffer.data_ptr() in self._mappings

    def unmap(self, buffer: "torch.Tensor") -> int:
        """Give the buffer's pages back to the system and return how many bytes that were.

        The pages go at once. The address range goes with the last view of it, so that a view that a caller forgot to
        drop reads zeros instead of somebody else's memory.

        Raises:
            DriverError: the buffer is not one of these, or was given back before.
        """
        with self._lock:
            mapping = self._mappings.pop(buffer.data_ptr(), None)
        if mapping is None:
            raise DriverError("the buffer to free was not allocated by this device, or was freed before")
        if self._is_locked:
            unlock_memory(buffer.data_ptr(), len(mapping))
        mapping.madvise(mmap.MADV_DONTNEED)
        return len(mapping)

    def unmap_all(self) -> None:
        """Give every buffer's pages back."""
        with self._lock:
            mappings = list(self._mappings.items())
            self._mappings.clear()
        for address, mapping in mappings:
            if self._is_locked:
                unlock_memory(address, len(mapping))
            mapping.madvise(mmap.MADV_DONTNEED)


def _prefer_huge_pages(mapping: mmap.mmap) -> None:
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return  # a kernel built without them: small pages serve as well, slower
