"""A driver: code for one kind of device. One file, one `Driver` class, one `Device` class."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from teengined.core.device import DeviceDescription, DeviceSpec, MemoryInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Availability", "CopyEvent", "Device", "Driver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether a driver can work on this host, and if not, why, in a sentence for people."""

    available: bool
    reason: str = ""


class CopyEvent(ABC):
    """The completion of copies queued before it was recorded."""

    @abstractmethod
    def wait(self) -> None:
        """Make later compute on the device wait for the copies. May return before they are done."""

    @abstractmethod
    def synchronize(self) -> None:
        """Block the calling thread until the copies are done, after which their source may be reused."""


class Device(ABC):
    """An opened device in a worker process. Not shared between processes; one thread computes, one may copy.

    Life: `Driver.open` -> use -> `close`. After `close` every method but `close` raises `DriverError`.
    """

    spec: DeviceSpec

    @property
    @abstractmethod
    def torch_device(self) -> "torch.device":
        """Where tensors of this device live."""

    @property
    @abstractmethod
    def shares_host_memory(self) -> bool:
        """True where a staging buffer *is* device memory, so that nothing is copied (CPU)."""

    @abstractmethod
    def allocate(self, num_bytes: int) -> "torch.Tensor":
        """Return a uint8 tensor of `num_bytes` on the device, page aligned, counted against the budget.

        The bytes are given back when the tensor is passed to `free`.

        Raises:
            OutOfDeviceMemory: the budget or the device has no room; the message names both sizes.
        """

    @abstractmethod
    def allocate_staging(self, num_bytes: int) -> "torch.Tensor":
        """Return a uint8 tensor in host memory, page aligned, fit for O_DIRECT reads and fast copies.

        Counted against the budget only where `shares_host_memory`.
        """

    @abstractmethod
    def free(self, buffer: "torch.Tensor") -> None:
        """Give back what `allocate` or `allocate_staging` returned. The caller drops its views first."""

    def register_host(self, buffer: "torch.Tensor") -> bool:
        """Make host memory that others allocated a better source of copies; say whether that did anything.

        `copy` takes it registered or not. This default is for devices whose copies gain nothing by it.

        Args:
            buffer: uint8, page aligned, mapped for reading only, and not written to any more.

        Raises:
            DriverError: the device cannot; copies from it are slower then.
        """
        del buffer
        return False

    def unregister_host(self, buffer: "torch.Tensor") -> bool:
        """Undo `register_host` when copies out of the buffer are done; say whether there was anything to undo."""
        del buffer
        return False

    @abstractmethod
    def copy(self, source: "torch.Tensor", target: "torch.Tensor") -> CopyEvent:
        """Queue a copy of a staging buffer to a device buffer of equal size beside compute; return its event.

        Waits for no compute: a caller that refills a buffer waits for `record_compute` first.
        """

    def record_compute(self) -> CopyEvent:
        """Return the completion of the compute queued so far, after which buffers it reads may be refilled.

        Called by the computing thread; another may wait for it. This default waits on the spot; a device with streams
        records an event instead, so that refilling a buffer does not hold up the host.
        """
        self.synchronize()
        return _DoneEvent()

    @abstractmethod
    def synchronize(self) -> None:
        """Block until everything queued on the device is done."""

    @abstractmethod
    def memory_info(self) -> MemoryInfo:
        """Return budget, what this worker allocated, and what the device has free."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Safe to call twice."""

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close at the end of the context."""
        self.close()


class _DoneEvent(CopyEvent):
    """Of work that is already complete."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Driver(ABC):
    """Finds and opens devices of one kind. Importing the module and `discover` must not import torch."""

    name: ClassVar[str]

    @abstractmethod
    def availability(self) -> Availability:
        """Say whether devices of this kind can be opened here; never raises."""

    @abstractmethod
    def discover(self) -> tuple[DeviceDescription, ...]:
        """Describe the devices present, cheaply (tens of milliseconds), without opening them."""

    @abstractmethod
    def open(self, spec: DeviceSpec) -> Device:
        """Open a device in this process and apply its threads and cores.

        Raises:
            DeviceUnavailable: there is no such device, or its library is missing.
        """
