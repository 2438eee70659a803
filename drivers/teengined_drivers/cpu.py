"""The CPU as one or several logical devices, each with a memory budget, a number of threads and its own cores.

A staging buffer is device memory here: what was read from the disk is computed on where it lies.
"""

import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING

from teengined.core.device import DeviceDescription, DeviceSpec, MemoryInfo
from teengined.core.errors import DeviceUnavailable, DriverError
from teengined.interfaces.driver import Availability, CopyEvent, Device, Driver
from teengined.interfaces.hookspecs import hookimpl
from teengined_drivers.budget import Budget, whole_pages
from teengined_drivers.host_buffers import HostBuffers
from teengined_drivers.host_memory import available_memory_bytes, memory_limit_bytes
from teengined_drivers.processor import bind_process, processor_name

if TYPE_CHECKING:
    import torch

__all__ = ["CpuDevice", "CpuDriver"]


class CpuDevice(Device):
    """Host memory within a budget."""

    def __init__(self, spec: DeviceSpec) -> None:
        """Take no memory yet; the driver has bound the process."""
        self.spec = spec
        self._budget = Budget(spec.id, spec.memory_bytes)
        self._buffers = HostBuffers(is_locked=spec.is_locked)
        self._open = True

    @property
    def torch_device(self) -> "torch.device":
        """Return `cpu`."""
        import torch

        self._check_open()
        return torch.device("cpu")

    @property
    def shares_host_memory(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def allocate(self, num_bytes: int) -> "torch.Tensor":
        """Map whole pages, zeros until written; huge pages from 2 MiB on where the system has them."""
        self._check_open()
        taken_bytes = whole_pages(num_bytes)
        self._budget.take(taken_bytes)
        try:
            return self._buffers.map(num_bytes)
        except BaseException:
            self._budget.give_back(taken_bytes)
            raise

    def allocate_staging(self, num_bytes: int) -> "torch.Tensor":
        """As `allocate`: the staging buffer is the weight."""
        return self.allocate(num_bytes)

    def free(self, buffer: "torch.Tensor") -> None:
        """Give the pages back at once; a view that was not dropped reads zeros from here on."""
        self._check_open()
        self._budget.give_back(self._buffers.unmap(buffer))

    def copy(self, source: "torch.Tensor", target: "torch.Tensor") -> CopyEvent:
        """Copy now."""
        self._check_open()
        if source.nbytes != target.nbytes:
            raise DriverError(f"a copy of {source.nbytes} bytes into {target.nbytes}")
        target.copy_(source)
        return _DoneCopy()

    def synchronize(self) -> None:
        """Return at once: nothing is ever queued."""
        self._check_open()

    def memory_info(self) -> MemoryInfo:
        """Return the budget, what is allocated, and what the host has free."""
        self._check_open()
        return MemoryInfo(
            budget_bytes=self._budget.limit_bytes,
            allocated_bytes=self._budget.taken_bytes,
            device_free_bytes=available_memory_bytes(),
        )

    def close(self) -> None:
        """Give everything back."""
        self._open = False
        self._buffers.unmap_all()

    def _check_open(self) -> None:
        if not self._open:
            raise DriverError(f"{self.spec.id} is closed")


class CpuDriver(Driver):
    """Describes the host's CPU as `cpu:0`; opens any number of logical devices, `cpu:0`, `cpu:1`, ….

    Opening binds the whole process: one device a process, as every worker has it.
    """

    name = "cpu"

    def availability(self) -> Availability:
        """There is always a CPU; torch may be missing."""
        if importlib.util.find_spec("torch") is None:
            return Availability(available=False, reason="torch is not installed")
        return Availability(available=True)

    def discover(self) -> tuple[DeviceDescription, ...]:
        """Return one device with all memory that this process may use."""
        if not self.availability().available:
            return ()
        return (
            DeviceDescription(
                id="cpu:0",
                driver=self.name,
                name=processor_name(),
                uuid="cpu-0",
                total_memory_bytes=memory_limit_bytes(),
                library_versions=(f"torch {importlib.metadata.version('torch')}",),
            ),
        )

    def open(self, spec: DeviceSpec) -> Device:
        """Bind this process to the device's cores and threads."""
        availability = self.availability()
        if not availability.available:
            raise DeviceUnavailable(f"{spec.id}: {availability.reason}", hint="install torch")
        driver, _, index = spec.id.partition(":")
        if driver != self.name or not index.isdecimal():
            raise DeviceUnavailable(f"{spec.id!r} is no CPU device", hint="name it cpu:0, cpu:1, …")
        bind_process(spec)
        return CpuDevice(spec)


class _DoneCopy(CopyEvent):
    def wait(self) -> None:
        """Return at once: the copy is done."""

    def synchronize(self) -> None:
        """Return at once: the copy is done."""


@hookimpl
def teengine_register_drivers() -> list[type[Driver]]:
    """Return the CPU driver."""
    return [CpuDriver]
