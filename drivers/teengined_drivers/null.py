"""A device without hardware: memory is a budget and copies go to host memory, so that everything else can be tested.

Unlike the CPU it has memory "of its own": staging buffers are not counted and weights are copied, as on a GPU.
"""

from typing import TYPE_CHECKING

from teengined.core.device import DeviceDescription, DeviceSpec, MemoryInfo
from teengined.core.errors import DeviceUnavailable, DriverError
from teengined.interfaces.driver import Availability, CopyEvent, Device, Driver
from teengined.interfaces.hookspecs import hookimpl
from teengined_drivers.budget import Budget, whole_pages
from teengined_drivers.host_buffers import HostBuffers

if TYPE_CHECKING:
    import torch

__all__ = ["NullDevice", "NullDriver"]


class NullDevice(Device):
    """A budget, and two sets of host buffers that stand for device and staging memory."""

    def __init__(self, spec: DeviceSpec) -> None:
        """Take no memory yet."""
        self.spec = spec
        self._budget = Budget(spec.id, spec.memory_bytes)
        self._device_buffers = HostBuffers()
        self._staging_buffers = HostBuffers()
        self._open = True

    @property
    def torch_device(self) -> "torch.device":
        """Return `cpu`."""
        import torch

        self._check_open()
        return torch.device("cpu")

    @property
    def shares_host_memory(self) -> bool:
        """Return False, so that the ways of a device with own memory are taken."""
        self._check_open()
        return False

    def allocate(self, num_bytes: int) -> "torch.Tensor":
        """Count whole pages; the host gives them when they are touched."""
        self._check_open()
        taken_bytes = whole_pages(num_bytes)
        self._budget.take(taken_bytes)
        try:
            return self._device_buffers.map(num_bytes)
        except BaseException:
            self._budget.give_back(taken_bytes)
            raise

    def allocate_staging(self, num_bytes: int) -> "torch.Tensor":
        """Map host memory, uncounted."""
        self._check_open()
        return self._staging_buffers.map(num_bytes)

    def free(self, buffer: "torch.Tensor") -> None:
        """Give a buffer of either kind back."""
        self._check_open()
        if self._staging_buffers.holds(buffer):
            self._staging_buffers.unmap(buffer)
        else:
            self._budget.give_back(self._device_buffers.unmap(buffer))

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
        """Return the budget; all of it that is not allocated is free, since nobody shares the device."""
        self._check_open()
        taken_bytes = self._budget.taken_bytes
        return MemoryInfo(
            budget_bytes=self._budget.limit_bytes,
            allocated_bytes=taken_bytes,
            device_free_bytes=self._budget.limit_bytes - taken_bytes,
        )

    def close(self) -> None:
        """Give everything back."""
        self._open = False
        self._device_buffers.unmap_all()
        self._staging_buffers.unmap_all()

    def _check_open(self) -> None:
        if not self._open:
            raise DriverError(f"{self.spec.id} is closed")


class NullDriver(Driver):
    """Finds no device of itself: `null:0`, `null:1`, … are there when a configuration names them."""

    name = "null"

    def availability(self) -> Availability:
        """Say yes always."""
        return Availability(available=True)

    def discover(self) -> tuple[DeviceDescription, ...]:
        """Return nothing, so that no plan takes a device that is none."""
        return ()

    def open(self, spec: DeviceSpec) -> Device:
        """Open a budget; the process keeps its threads and cores, since nothing is computed."""
        driver, _, index = spec.id.partition(":")
        if driver != self.name or not index.isdecimal():
            raise DeviceUnavailable(f"{spec.id!r} is no null device", hint="name it null:0, null:1, …")
        return NullDevice(spec)


class _DoneCopy(CopyEvent):
    def wait(self) -> None:
        """Return at once: the copy is done."""

    def synchronize(self) -> None:
        """Return at once: the copy is done."""


@hookimpl
def teengine_register_drivers() -> list[type[Driver]]:
    """Return the null driver."""
    return [NullDriver]
