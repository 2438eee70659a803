"""Counts a device's bytes against what the operator gave it, the same way for every kind of device."""

import threading

from teengined.core.errors import DriverError, OutOfDeviceMemory
from teengined.core.quantities import format_bytes

__all__ = ["PAGE_BYTES", "Budget", "whole_pages"]

PAGE_BYTES = 4096


def whole_pages(num_bytes: int) -> int:
    """Return `num_bytes` rounded up to whole pages: what a buffer of that size takes.

    Raises:
        DriverError: not a positive number.
    """
    if num_bytes < 1:
        raise DriverError(f"a buffer has at least one byte, not {num_bytes}")
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


class Budget:
    """Bytes taken and left. Safe to use from several threads: one computes, one may copy."""

    def __init__(self, device_id: str, limit_bytes: int) -> None:
        """Start with everything left."""
        self.limit_bytes = limit_bytes
        self._device_id = device_id
        self._taken_bytes = 0
        self._lock = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        """Bytes taken and not given back."""
        return self._taken_bytes

    def take(self, num_bytes: int) -> None:
        """Count `num_bytes` as taken.

        Raises:
            OutOfDeviceMemory: fewer are left; nothing was taken.
        """
        with self._lock:
            left_bytes = self.limit_bytes - self._taken_bytes
            if num_bytes > left_bytes:
                raise OutOfDeviceMemory(
                    f"{self._device_id} has {format_bytes(left_bytes)} left of its budget of"
                    f" {format_bytes(self.limit_bytes)}; {format_bytes(num_bytes)} were asked"
                    f" ({num_bytes} bytes)",
                    hint="raise the device's `memory`, or load with a shorter context",
                )
            self._taken_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count `num_bytes` as left again."""
        with self._lock:
            self._taken_bytes -= num_bytes
            assert self._taken_bytes >= 0, "more was given back than taken"
