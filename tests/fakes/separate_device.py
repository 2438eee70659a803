"""A device whose memory is not the host's: copies run on a thread of their own, later than they were queued."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from teengined.core.device import DeviceSpec, MemoryInfo
from teengined.core.errors import DriverError
from teengined.interfaces.driver import CopyEvent, Device
from teengined_drivers.cpu import CpuDevice

__all__ = ["SeparateDevice", "cpu_device"]


def cpu_device(memory_bytes: int = 1 << 30) -> CpuDevice:
    """Return the real CPU device, without binding this process to anything."""
    return CpuDevice(DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=memory_bytes))


class _Queued(CopyEvent):
    def __init__(self, future: "Future[None]") -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result(10)

    def synchronize(self) -> None:
        self._future.result(10)


class SeparateDevice(Device):
    """Two real CPU devices: one stands for the host, one for the device. `fail_copies` makes the next copies fail."""

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self.spec = DeviceSpec(id="far:0", driver="far", memory_bytes=memory_bytes)
        self.fail_copies = False
        self.num_copies = 0
        self._device, self._host = cpu_device(memory_bytes), cpu_device()
        self._far_buffers: list[torch.Tensor] = []
        self._copier = ThreadPoolExecutor(1)
        self._lock = threading.Lock()

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def shares_host_memory(self) -> bool:
        return False

    def allocate(self, num_bytes: int) -> torch.Tensor:
        buffer = self._device.allocate(num_bytes)
        self._far_buffers.append(buffer)
        return buffer

    def allocate_staging(self, num_bytes: int) -> torch.Tensor:
        return self._host.allocate(num_bytes)

    def free(self, buffer: torch.Tensor) -> None:
        far = any(known is buffer for known in self._far_buffers)
        self._far_buffers = [known for known in self._far_buffers if known is not buffer]
        (self._device if far else self._host).free(buffer)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> CopyEvent:
        with self._lock:
            self.num_copies += 1
            return _Queued(self._copier.submit(self._copy, source, target))

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if self.fail_copies:
            raise DriverError("far:0 fell off the bus")
        target.copy_(source)

    def synchronize(self) -> None:
        self._copier.submit(int).result(10)

    def memory_info(self) -> MemoryInfo:
        return self._device.memory_info()

    @property
    def staging_bytes(self) -> int:
        """Return what is allocated of host memory."""
        return self._host.memory_info().allocated_bytes

    def close(self) -> None:
        self._copier.shutdown()
        self._device.close()
        self._host.close()
