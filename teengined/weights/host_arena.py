"""Units that wait in host memory for a device with memory of its own: in a pool that all workers of a host share.

    claim each ──► filled by others: map it
              ├──► empty: read it, compare it with its digest, write it into the pool, seal it, map it
              └──► being filled by another: last of all, wait for it (or fill it, if the other fails)

Bytes are compared before they enter the pool, also where a load asked for no checks: others will rely on them.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from teengined.core.errors import DriverError, OutOfDeviceMemory
from teengined.core.locked_memory import lock_memory
from teengined.core.model import UnitSpec
from teengined.core.quantities import format_bytes
from teengined.core.sealed_memory import fill_memory
from teengined.interfaces.driver import Device
from teengined.weights.digests import check_pieces
from teengined.weights.host_pool_link import HostPoolLink
from teengined.weights.mapped_memory import drop_pages, tensor_of_memory
from teengined.weights.options import StreamOptions
from teengined.weights.read_pool import ReadPool
from teengined.weights.unit_reads import UNITS_AT_ONCE, read_units

__all__ = ["HostArena"]

logger = logging.getLogger(__name__)

# Each needs a descriptor until it is filled; and of two workers that load the same, each reads what the other has not
# begun.
_CLAIMED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loading:
    """What one load works with."""

    link: HostPoolLink
    reads: ReadPool
    timeout_seconds: float
    on_unit: Callable[[UnitSpec], None]


class HostArena:
    """Knows its units on construction, maps them in `load`, lets go of them in `close`. For one thread."""

    def __init__(self, *, device: Device, units: Iterable[UnitSpec], options: StreamOptions) -> None:
        """Take nothing yet. The options say where the pool is."""
        self._device = device
        self._options = options
        self._digests = {unit.id: unit.digest for unit in units}
        self._units = {unit.digest: unit for unit in units}
        """By digest: units of equal content lie in one place."""
        self._tensors: dict[str, torch.Tensor] = {}
        self._staging: list[torch.Tensor] = []
        self._notes: list[str] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of all units, of equal ones once."""
        return sum(unit.size_bytes for unit in self._units.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know: memory that could not be locked, or not be registered with the device."""
        return tuple(self._notes)

    def __contains__(self, unit_id: object) -> bool:
        """Say whether the unit lives here."""
        return unit_id in self._digests

    def locate(self, unit_id: str) -> tuple[torch.Tensor, int]:
        """Return the uint8 buffer and the offset at which the unit lies in it, after `load`."""
        return self._tensors[self._digests[unit_id]], 0

    def load(self, pool: ReadPool, *, timeout_seconds: float, on_unit: Callable[[UnitSpec], None]) -> None:
        """Map every unit, reading those that nobody has read; `on_unit` is called in this thread as each arrives.

        Raises:
            PackageError, PackageCorrupt: as `StageWeights.open`.
            TransportError: the daemon is gone.
            DeadlineExceeded: a read, or another worker that fills a unit, took longer than `timeout_seconds`.
        """
        if not self._units:
            return
        access = self._options.host_pool
        assert access is not None, "there is no arena without a pool"
        with HostPoolLink(access, timeout_seconds=timeout_seconds) as link:
            loading = _Loading(link=link, reads=pool, timeout_seconds=timeout_seconds, on_unit=on_unit)
            units, busy = tuple(self._units.values()), list[UnitSpec]()
            for start in range(0, len(units), _CLAIMED_AT_ONCE):
                busy += self._take(units[start : start + _CLAIMED_AT_ONCE], loading, wait=False)
            for unit in busy:
                self._take((unit,), loading, wait=True)
        if access.is_locked:
            self._lock()
        self._register()

    def close(self) -> None:
        """Unmap everything, after the reads have ended. Views that somebody forgot read zeros. Safe to call twice."""
        self._free_staging()
        tensors, self._tensors = self._tensors, {}
        for tensor in tensors.values():
            self._device.unregister_host(tensor)
            drop_pages(tensor)

    def _take(self, units: Sequence[UnitSpec], loading: _Loading, *, wait: bool) -> list[UnitSpec]:
        """Map what is filled, fill what is ours to fill, and return what others are filling."""
        ours: dict[str, int] = {}
        busy: list[UnitSpec] = []
        try:
            for unit in units:
                grant, descriptor = loading.link.claim(unit.digest, wait=wait)
                if descriptor is None:
                    busy.append(unit)
                elif grant.state == "fill":
                    ours[unit.digest] = descriptor
                else:
                    self._map(unit, descriptor, loading)
            self._fill(ours, loading)
        finally:
            for descriptor in ours.values():
                os.close(descriptor)
        return busy

    def _map(self, unit: UnitSpec, descriptor: int, loading: _Loading) -> None:
        """Take a filled unit's memory into this process, and close its descriptor."""
        try:
            self._tensors[unit.digest] = tensor_of_memory(descriptor, unit.size_bytes)
        finally:
            os.close(descriptor)
        loading.on_unit(unit)

    def _fill(self, ours: Mapping[str, int], loading: _Loading) -> None:
        if not ours:
            return
        units = [self._units[digest] for digest in ours]
        largest = max(unit.size_bytes for unit in units)
        self._staging = [self._device.allocate_staging(largest) for _ in range(UNITS_AT_ONCE)]
        for unit, slot in read_units(units, self._target, loading.reads, timeout_seconds=loading.timeout_seconds):
            content = self._target(unit, slot)
            if not self._options.verify:
                check_pieces(unit, (content,))
            fill_memory(ours[unit.digest], content)
            _, descriptor = loading.link.note_filled(unit.digest)
            assert descriptor is not None, "what is filled has memory"
            self._map(unit, descriptor, loading)
        self._free_staging()

    def _free_staging(self) -> None:
        while self._staging:
            self._device.free(self._staging.pop())

    def _target(self, unit: UnitSpec, slot: int) -> memoryview:
        return self._staging[slot].numpy().data[: unit.size_bytes]

    def _lock(self) -> None:
        locked_bytes = 0
        try:
            for tensor in self._tensors.values():
                lock_memory(tensor.data_ptr(), tensor.nbytes)
                locked_bytes += tensor.nbytes
        except OutOfDeviceMemory as error:
            self._note(
                f"{self._device.spec.id}: {format_bytes(locked_bytes)} of {format_bytes(self.size_bytes)} in the"
                f" pool of host memory are locked, the rest may be swapped out: {error.message};"
                " raise it for all workers (LimitMEMLOCK= in the unit, `ulimit -l` in a shell), or unset host.lock"
            )

    def _register(self) -> None:
        try:
            for tensor in self._tensors.values():
                self._device.register_host(tensor)
        except DriverError as error:
            self._note(f"{self._device.spec.id} copies slower from the pool of host memory: {error.message}")

    def _note(self, note: str) -> None:
        logger.warning("%s", note)
        self._notes.append(note)
