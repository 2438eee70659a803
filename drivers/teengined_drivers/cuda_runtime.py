"""Where the CUDA driver touches CUDA's own calls and errors: page locking, GPUs by UUID, one mapping of failures."""

import functools
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeviceUnavailable, DriverError, OutOfDeviceMemory, TeengineError
from teengined.core.quantities import format_bytes
from teengined_drivers.nvml import Gpu

__all__ = ["lock_pages", "mapped_errors", "torch_index", "unlock_pages"]

# cudaHostRegisterPortable: page-locked for every context of the process.
_PORTABLE = 1
# cudaHostRegisterReadOnly: without it, pages that are mapped for reading only are refused.
_READ_ONLY = 8


def lock_pages(address: int, num_bytes: int, *, read_only: bool = False) -> None:
    """Lock host pages for direct copies, of memory mapped for reading where `read_only`.

    Raises:
        RuntimeError: CUDA refuses.
    """
    import torch

    flags = _PORTABLE | (_READ_ONLY if read_only else 0)
    torch.cuda.check_error(int(_runtime().cudaHostRegister(address, num_bytes, flags)))


def unlock_pages(address: int) -> None:
    """Undo `lock_pages`; RuntimeError where CUDA refuses."""
    import torch

    torch.cuda.check_error(int(_runtime().cudaHostUnregister(address)))


def torch_index(spec: DeviceSpec, gpu: Gpu) -> int:
    """Return torch's number of a GPU: environment variables may hide GPUs from torch, or order them otherwise.

    Raises:
        DeviceUnavailable: the GPU is hidden.
    """
    with mapped_errors(spec.id):
        for index, uuid in enumerate(_visible_uuids()):
            if uuid == gpu.uuid.removeprefix("GPU-"):
                return index
    raise DeviceUnavailable(
        f"{spec.id} ({gpu.name}) is hidden from this process", hint="unset CUDA_VISIBLE_DEVICES, or add the GPU to it"
    )


@functools.cache
def _visible_uuids() -> tuple[str, ...]:
    import torch

    return tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count()))


@contextmanager
def mapped_errors(device_id: str) -> Generator[None]:
    """Turn torch's errors into ours, once."""
    import torch

    try:
        yield
    except TeengineError:
        raise
    except torch.OutOfMemoryError as error:
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        raise OutOfDeviceMemory(
            f"{device_id} is full: {format_bytes(free_bytes)} of {format_bytes(total_bytes)} are free",
            hint="stop other programs on the GPU, or lower the device's `memory`",
        ) from error
    except (RuntimeError, AssertionError) as error:
        raise DriverError(f"{device_id}: {error}") from error


def _runtime() -> Any:
    import torch

    return torch.cuda.cudart()
