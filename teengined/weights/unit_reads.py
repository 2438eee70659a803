"""Reading units at load, a few at a time, so that one is hashed or copied while the next is read."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from teengined.core.errors import DeadlineExceeded, TeengineError
from teengined.core.model import UnitSpec
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget

__all__ = ["UNITS_AT_ONCE", "read_units"]

UNITS_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Landed:
    """A unit whose read ended, and the slot that it came through."""

    unit: UnitSpec
    slot: int
    error: TeengineError | None


def read_units(
    units: Sequence[UnitSpec],
    target: Callable[[UnitSpec, int], memoryview],
    pool: ReadPool,
    *,
    timeout_seconds: float,
) -> Iterator[tuple[UnitSpec, int]]:
    """Read every unit; yield each that arrived with its slot, which is taken for another when the next is asked for.

    Args:
        units: In the order in which they are read.
        target: Where a unit goes, by unit and slot (0 … `UNITS_AT_ONCE` - 1).
        pool: Reads, and compares with digests where it was told to.
        timeout_seconds: Longest wait for a unit.

    Raises:
        PackageError, PackageCorrupt: as `StageWeights.open`, when no read is under way any more.
        DeadlineExceeded: no unit arrived in time.
    """
    landed: SimpleQueue[_Landed] = SimpleQueue()
    free = deque(range(UNITS_AT_ONCE))
    failure: TeengineError | None = None
    waiting = deque(units)
    num_in_flight = 0
    while num_in_flight or (waiting and failure is None):
        while waiting and free and failure is None:
            _start(waiting.popleft(), free.popleft(), target, pool, landed)
            num_in_flight += 1
        arrived = _next_landed(landed, timeout_seconds)
        num_in_flight -= 1
        failure = failure or arrived.error
        if failure is None:
            yield arrived.unit, arrived.slot
        free.append(arrived.slot)
    if failure is not None:
        raise failure


def _start(
    unit: UnitSpec,
    slot: int,
    target: Callable[[UnitSpec, int], memoryview],
    pool: ReadPool,
    landed: SimpleQueue[_Landed],
) -> None:
    def on_done(read: GroupRead) -> None:
        landed.put(_Landed(unit=unit, slot=slot, error=read.error))

    pool.submit(GroupRead([UnitTarget(unit=unit, memory=target(unit, slot))], on_done))


def _next_landed(landed: SimpleQueue[_Landed], timeout_seconds: float) -> _Landed:
    try:
        return landed.get(timeout=timeout_seconds)
    except Empty:
        raise DeadlineExceeded(
            f"no unit arrived from disk for {timeout_seconds:g} s", hint="check the disk (`dmesg`), then load again"
        ) from None
