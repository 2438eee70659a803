"""Units that stay: one buffer, on the device or (as the source of copies) in host memory, with them side by side."""

from collections.abc import Callable, Sequence

import torch

from teengined.core.model import UnitSpec
from teengined.interfaces.driver import Device
from teengined.weights.read_pool import ReadPool
from teengined.weights.unit_reads import UNITS_AT_ONCE, read_units

__all__ = ["UnitArena"]


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
        self._allocate_staging()
        for unit, slot in read_units(self._units, self._target, pool, timeout_seconds=timeout_seconds):
            self._place(unit, slot)
            on_unit(unit)
        self._free_staging()

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
        for _ in range(UNITS_AT_ONCE):
            self._staging.append(self._device.allocate_staging(largest))

    def _free_staging(self) -> None:
        while self._staging:
            self._device.free(self._staging.pop())

    def _target(self, unit: UnitSpec, slot: int) -> memoryview:
        buffer, offset = (self._staging[slot], 0) if self._staging else self.locate(unit.id)
        return buffer.numpy().data[offset : offset + unit.size_bytes]

    def _place(self, unit: UnitSpec, slot: int) -> None:
        """Copy a unit that came through staging to its place, after which the staging buffer is free again."""
        if self._in_place:
            return
        buffer, offset = self.locate(unit.id)
        size = unit.size_bytes
        self._device.copy(self._staging[slot][:size], buffer[offset : offset + size]).synchronize()
