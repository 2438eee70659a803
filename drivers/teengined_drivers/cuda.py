"""NVIDIA GPUs through torch.cuda: a side stream for copies, page-locked staging, events between the two streams.

NVML names the GPUs before anything opens them, so that the daemon, which has no torch, can plan.
"""

from typing import TYPE_CHECKING

import pynvml

from teengined.core.device import DeviceDescription, DeviceSpec, MemoryInfo
from teengined.core.errors import DeviceUnavailable, DriverError
from teengined.interfaces.driver import Availability, CopyEvent, Device, Driver
from teengined.interfaces.hookspecs import hookimpl
from teengined_drivers.budget import PAGE_BYTES, Budget, whole_pages
from teengined_drivers.cuda_runtime import lock_pages, mapped_errors, torch_index, unlock_pages
from teengined_drivers.host_buffers import HostBuffers
from teengined_drivers.nvml import cuda_build_missing, driver_version, list_gpus, torch_version
from teengined_drivers.processor import bind_process

if TYPE_CHECKING:
    import torch

__all__ = ["CudaDevice", "CudaDriver"]


class CudaDevice(Device):
    """One GPU. Compute runs on the stream that was current when the device was opened; copies on one beside it.

    A copy does not wait for compute: who refills a buffer that queued compute may still read first waits for the event
    of `record_compute`. A copy that waited for all that is queued would never overlap with the layer before it.
    """

    def __init__(self, spec: DeviceSpec, index: int) -> None:
        """Take the GPU that torch counts as `index`."""
        import torch

        self.spec = spec
        self._index = index
        self._budget = Budget(spec.id, spec.memory_bytes)
        self._staging = HostBuffers()
        self._buffers: dict[int, tuple[torch.Tensor, int]] = {}
        self._registered: set[int] = set()
        self._open = True
        with mapped_errors(spec.id):
            torch.cuda.set_device(index)
            self._compute_stream = torch.cuda.current_stream(index)
            self._copy_stream = torch.cuda.Stream(index)
            self._bound_torch(index)

    @property
    def torch_device(self) -> "torch.device":
        """Return the GPU as torch counts it, which may differ from the id where GPUs are hidden."""
        import torch

        self._check_open()
        return torch.device("cuda", self._index)

    @property
    def shares_host_memory(self) -> bool:
        """Return False."""
        self._check_open()
        return False

    def allocate(self, num_bytes: int) -> "torch.Tensor":
        """Take a page-aligned range out of torch's own pool; a page more than asked, for the alignment."""
        import torch

        self._check_open()
        taken_bytes = whole_pages(num_bytes) + PAGE_BYTES
        self._budget.take(taken_bytes)
        try:
            with mapped_errors(self.spec.id):
                whole = torch.empty(taken_bytes, dtype=torch.uint8, device=self.torch_device)
        except BaseException:
            self._budget.give_back(taken_bytes)
            raise
        start = -whole.data_ptr() % PAGE_BYTES
        buffer = whole[start : start + num_bytes]
        self._buffers[buffer.data_ptr()] = (whole, taken_bytes)
        return buffer

    def allocate_staging(self, num_bytes: int) -> "torch.Tensor":
        """Map host memory and lock its pages, so that copies run without the CPU.

        Registered by hand: torch's own page-locked pool rounds up to a power of two.
        """
        self._check_open()
        buffer = self._staging.map(num_bytes)
        try:
            with mapped_errors(self.spec.id):
                lock_pages(buffer.data_ptr(), whole_pages(num_bytes))
        except BaseException:
            self._staging.unmap(buffer)
            raise
        self._registered.add(buffer.data_ptr())
        return buffer

    def free(self, buffer: "torch.Tensor") -> None:
        """Give back a buffer of either kind, staging only after copies out of it are done."""
        self._check_open()
        if self._staging.holds(buffer):
            with mapped_errors(self.spec.id):
                self._copy_stream.synchronize()
                self._unregister(buffer.data_ptr())
            self._staging.unmap(buffer)
            return
        kept = self._buffers.pop(buffer.data_ptr(), None)
        if kept is None:
            raise DriverError("the buffer to free was not allocated by this device, or was freed before")
        self._budget.give_back(kept[1])

    def register_host(self, buffer: "torch.Tensor") -> bool:
        """Lock its pages for direct copies, as those of staging buffers."""
        self._check_open()
        with mapped_errors(self.spec.id):
            lock_pages(buffer.data_ptr(), whole_pages(buffer.nbytes), read_only=True)
        self._registered.add(buffer.data_ptr())
        return True

    def unregister_host(self, buffer: "torch.Tensor") -> bool:
        """Unlock its pages when the copies that are queued are done."""
        self._check_open()
        if buffer.data_ptr() not in self._registered:
            return False
        with mapped_errors(self.spec.id):
            self._copy_stream.synchronize()
            self._unregister(buffer.data_ptr())
        return True

    def copy(self, source: "torch.Tensor", target: "torch.Tensor") -> CopyEvent:
        """Queue on the copy stream."""
        import torch

        self._check_open()
        if source.nbytes != target.nbytes:
            raise DriverError(f"a copy of {source.nbytes} bytes into {target.nbytes}")
        with mapped_errors(self.spec.id), torch.cuda.stream(self._copy_stream):
            target.copy_(source, non_blocking=True)
            # torch's pool must not hand the memory on while this stream still writes to it.
            target.record_stream(self._copy_stream)
            event = torch.cuda.Event()
            event.record(self._copy_stream)
            return _CudaCopy(self.spec.id, event, self._compute_stream)

    def record_compute(self) -> CopyEvent:
        """Record an event on the compute stream and return at once."""
        import torch

        self._check_open()
        with mapped_errors(self.spec.id):
            event = torch.cuda.Event()
            event.record(self._compute_stream)
            return _CudaCopy(self.spec.id, event, self._compute_stream)

    def synchronize(self) -> None:
        """Wait for both streams, and meet here any error that they ran into."""
        import torch

        self._check_open()
        with mapped_errors(self.spec.id):
            torch.cuda.synchronize(self._index)

    def memory_info(self) -> MemoryInfo:
        """Return the budget, what was allocated here, and what the GPU has free for anyone."""
        import torch

        self._check_open()
        with mapped_errors(self.spec.id):
            free_bytes, _ = torch.cuda.mem_get_info(self._index)
        return MemoryInfo(
            budget_bytes=self._budget.limit_bytes,
            allocated_bytes=self._budget.taken_bytes,
            device_free_bytes=free_bytes,
        )

    def close(self) -> None:
        """Wait for what is queued, unlock staging, and give torch's pool back to the GPU."""
        import torch

        if not self._open:
            return
        self._open = False
        with mapped_errors(self.spec.id):
            torch.cuda.synchronize(self._index)
            for address in list(self._registered):
                self._unregister(address)
            self._staging.unmap_all()
            self._buffers.clear()
            torch.cuda.empty_cache()

    def _bound_torch(self, index: int) -> None:
        # What torch allocates by itself (activations, workspace) counts against the same budget.
        import torch

        total_bytes = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.spec.memory_bytes / total_bytes), index)

    def _unregister(self, address: int) -> None:
        self._registered.discard(address)
        unlock_pages(address)

    def _check_open(self) -> None:
        if not self._open:
            raise DriverError(f"{self.spec.id} is closed")


class CudaDriver(Driver):
    """Finds GPUs through NVML and opens them by UUID, so that hidden or reordered GPUs are never mixed up."""

    name = "cuda"

    def availability(self) -> Availability:
        """Look for a CUDA build of torch, the NVIDIA driver, and a GPU."""
        if missing := cuda_build_missing():
            return Availability(available=False, reason=missing)
        try:
            found = list_gpus()
        except pynvml.NVMLError as error:
            return Availability(available=False, reason=f"no NVIDIA driver answers: {error}")
        if not found:
            return Availability(available=False, reason="the NVIDIA driver knows no GPU")
        return Availability(available=True)

    def discover(self) -> tuple[DeviceDescription, ...]:
        """Return `cuda:N` for each GPU, N as nvidia-smi counts; nothing where there is no NVIDIA driver."""
        if not self.availability().available:
            return ()
        versions = (f"torch {torch_version()}", f"nvidia {driver_version()}")
        return tuple(
            DeviceDescription(
                id=f"cuda:{gpu.index}",
                driver=self.name,
                name=gpu.name,
                uuid=gpu.uuid,
                total_memory_bytes=gpu.total_memory_bytes,
                library_versions=versions,
                utilisation=gpu.utilisation,
            )
            for gpu in list_gpus()
        )

    def open(self, spec: DeviceSpec) -> Device:
        """Open the GPU in this process and bind the threads that feed it."""
        driver, _, index = spec.id.partition(":")
        if driver != self.name or not index.isdecimal():
            raise DeviceUnavailable(f"{spec.id!r} is no CUDA device", hint="name it cuda:0, cuda:1, …")
        availability = self.availability()
        if not availability.available:
            raise DeviceUnavailable(
                f"{spec.id}: {availability.reason}", hint="`teengine doctor` lists the devices here"
            )
        gpus = list_gpus()
        if int(index) >= len(gpus):
            raise DeviceUnavailable(f"{spec.id} does not exist; this host has {len(gpus)} GPUs")
        bind_process(spec)
        return CudaDevice(spec, torch_index(spec, gpus[int(index)]))


class _CudaCopy(CopyEvent):
    def __init__(self, device_id: str, event: "torch.cuda.Event", compute_stream: "torch.cuda.Stream") -> None:
        self._device_id = device_id
        self._event = event
        self._compute_stream = compute_stream

    def wait(self) -> None:
        """Make the compute stream wait; the caller goes on."""
        with mapped_errors(self._device_id):
            self._compute_stream.wait_event(self._event)

    def synchronize(self) -> None:
        """Block until the copy is done."""
        with mapped_errors(self._device_id):
            self._event.synchronize()


@hookimpl
def teengine_register_drivers() -> list[type[Driver]]:
    """Return the CUDA driver."""
    return [CudaDriver]
