"""Sealed memory of other processes as a tensor to read from."""

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import torch

from teengined.core.errors import InternalError
from teengined.core.sealed_memory import map_memory

__all__ = ["drop_pages", "tensor_of_memory"]

# From <sys/mman.h> of Linux; the mmap module has no names for them.
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value


def tensor_of_memory(descriptor: int, size_bytes: int) -> torch.Tensor:
    """Return sealed memory as a uint8 tensor. Writing to it ends the process: it is mapped for reading only.

    Raises:
        InternalError, CapacityError: as `map_memory`.
    """
    mapping = map_memory(descriptor, size_bytes)
    # torch warns of every buffer that it must not write to, so it gets one that does not tell.
    address = np.frombuffer(mapping, dtype=np.uint8).ctypes.data
    view: Any = (ctypes.c_uint8 * size_bytes).from_address(address)
    view.mapping = mapping  # Unmapped with the last tensor that looks into it.
    return torch.frombuffer(view, dtype=torch.uint8)


def drop_pages(tensor: torch.Tensor) -> None:
    """Let go of the memory at once. The address range goes with the last view of it; until then it reads zeros.

    Raises:
        InternalError: the kernel refuses.
    """
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    address, size = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes)
    if libc.mmap(address, size, mmap.PROT_READ, flags, -1, ctypes.c_long(0)) == _FAILED:
        raise InternalError(f"shared memory was not unmapped: {os.strerror(ctypes.get_errno())}")
