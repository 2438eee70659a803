"""Units that stay: one buffer, on the device or (as the source of copies) in host memory, with them side by side."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import torch

from teengined.core.errors import DeadlineExceeded, TeengineError
from teengined.core.model import UnitSpec
from teengined.interfaces.driver import Device
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget

__all__ = ["UnitArena"]

# Units read at once while loading: one is hashed or copied while the next is read.
_WINDOW = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Landed:
    """A unit whose read ended, and the staging buffer it came through (none where it was read into place)."""

    unit: UnitSpec
    staging: torch.Tensor | None
    error: TeengineError | None


class UnitArena:
    """Allocates on construction, fills in `load`, gives back in `close`."""

    def __init__(self, *, device: Device, units: Sequence[UnitSpec], on_host: bool) -> None:
        """Reserve room for `units`, in host memory where `on_host`, else on the device.

        Raises:
            OutOfDeviceMemory: the budget has no room.
        """
        self._device = device
        self._units = tuple(units)
        self._in_place = on_host or device.shares_host_memory
        self._staging: list[torch.Tensor] = []
        self._offsets: dict[str, int] = {}
        size = 0
        for unit in self._units:
            self._offsets[unit.id] = size
            size += unit.size_bytes
        allocate = device.allocate_staging if on_host else device.allocate
        self._buffer = allocate(size) if size else None

    @property
    def size_bytes(self) -> int:
        """Bytes of all units."""
        return sum(unit.size_bytes for unit in self._units)

    def __contains__(self, unit_id: object) -> bool:
        """Say whether the unit lives here."""
        return unit_id in self._offsets

    def locate(self, unit_id: str) -> tuple[torch.Tensor, int]:
        """Return the uint8 buffer and the offset at which the unit lies in it."""
        assert self._buffer is not None, "an arena of no units has no unit to locate"
        return self._buffer, self._offsets[unit_id]

    def load(self, pool: ReadPool, *, timeout_seconds: float, on_unit: Callable[[UnitSpec], None]) -> None:
        """Read every unit, a few at a time; `on_unit` is called in this thread as each arrives.

        Raises:
            PackageError, PackageCorrupt: as `StageWeights.open`.
            DeadlineExceeded: no unit arrived for `timeout_seconds`.
        """
        landed: SimpleQueue[_Landed] = SimpleQueue()
        self._allocate_staging()
        free = deque(self._staging or [None] * _WINDOW)
        failure: TeengineError | None = None
        waiting = deque(self._units)
        num_in_flight = 0
        while num_in_flight or (waiting and failure is None):
            while waiting and free and failure is None:
                self._start(waiting.popleft(), free.popleft(), pool, landed)
                num_in_flight += 1
            arrived = _next_landed(landed, timeout_seconds)
            num_in_flight -= 1
            failure = failure or arrived.error
            if failure is None:
                self._place(arrived)
                on_unit(arrived.unit)
            free.append(arrived.staging)
        self._free_staging()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Give the buffers back, after the pool has ended. Safe to call twice."""
        self._free_staging()
        if self._buffer is not None:
            self._device.free(self._buffer)
            self._buffer = None

    def _allocate_staging(self) -> None:
        if self._in_place or not self._units:
            return
        largest = max(unit.size_bytes for unit in self._units)
        for _ in range(min(_WINDOW, len(self._units))):
            self._staging.append(self._device.allocate_staging(largest))

    def _free_staging(self) -> None:
        while self._staging:
            self._device.free(self._staging.pop())

    def _start(
        self, unit: UnitSpec, staging: torch.Tensor | None, pool: ReadPool, landed: "SimpleQueue[_Landed]"
    ) -> None:
        buffer, offset = (staging, 0) if staging is not None else self.locate(unit.id)
        memory = buffer.numpy().data[offset : offset + unit.size_bytes]

        def on_done(read: GroupRead) -> None:
            landed.put(_Landed(unit=unit, staging=staging, error=read.error))

        pool.submit(GroupRead([UnitTarget(unit=unit, memory=memory)], on_done))

    def _place(self, landed: _Landed) -> None:
        """Copy a unit that came through staging to its place, after which the staging buffer is free again."""
        if landed.staging is None:
            return
        buffer, offset = self.locate(landed.unit.id)
        size = landed.unit.size_bytes
        self._device.copy(landed.staging[:size], buffer[offset : offset + size]).synchronize()


def _next_landed(landed: "SimpleQueue[_Landed]", timeout_seconds: float) -> _Landed:
    try:
        return landed.get(timeout=timeout_seconds)
    except Empty:
        raise DeadlineExceeded(
            f"no unit arrived from disk for {timeout_seconds:g} s", hint="check the disk (`dmesg`), then load again"
        ) from None
