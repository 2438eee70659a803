"""Which groups of a stage stay on the device: the most bytes that fit beside the ring for the rest.

Every resident byte saves the same time, so only the number of bytes counts. Groups of one size are exchangeable, so a
stage is described by how many groups it has of each size, and the answer by how many of those are resident. One
function answers for one stage and for a whole array of stages; all arrays broadcast against each other.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IntArray",
    "Residency",
    "StageSizes",
    "choose_resident",
    "least_bytes",
    "most_bytes",
    "ring_bytes",
    "spread",
]

IntArray = NDArray[np.int64]

# Ways to mix sizes that are tried before the choice falls back to largest-first. Real models have one to three sizes
# (a layer, another kind of layer, the head) and need at most about a hundred.
_MAX_MIXES = 128
# Up to so many sizes, each is tried as the largest streamed one; of more, only the first few.
_MAX_RING_SIZES = 8
_FEW_RING_SIZES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSizes:
    """How many groups stages have of each size."""

    sizes: tuple[int, ...]
    """Distinct, largest first."""
    counts: tuple[IntArray, ...]
    """One array for each size, an element for each stage."""

    @property
    def total_bytes(self) -> IntArray:
        """Bytes of all groups of each stage."""
        return _bytes_of(self.counts, self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """The choice for each stage."""

    counts: tuple[IntArray, ...]
    """Resident groups of each size."""
    resident_bytes: IntArray
    """-1 where the stage does not fit at all."""
    exact: bool
    """No choice of groups could make more bytes resident."""


def ring_bytes(streamed_sizes: Sequence[int], ring_slots: int) -> int:
    """Return the staging ring of a stage: a slot of the largest streamed group each, no more slots than groups."""
    return min(ring_slots, len(streamed_sizes)) * max(streamed_sizes, default=0)


def spread(num_groups: int, num_chosen: int) -> list[bool]:
    """Return which of `num_groups` in a row are chosen, as evenly as possible."""
    return [(index + 1) * num_chosen // num_groups > index * num_chosen // num_groups for index in range(num_groups)]


def choose_resident(
    stage: StageSizes, available: IntArray, *, ring_slots: int, limit: IntArray | None = None
) -> Residency:
    """Return the resident set with the most bytes such that it and its ring fit into `available`.

    Args:
        stage: Groups of each stage.
        available: Bytes for weights and ring; may be negative.
        ring_slots: Most slots of a ring.
        limit: Most resident bytes, whatever would fit.
    """
    ceiling = available if limit is None else np.minimum(available, limit)
    whole = stage.total_bytes
    best = np.where(whole <= ceiling, whole, np.int64(-1))
    counts = [np.where(best >= 0, count, 0) for count in stage.counts]
    exact = True
    # Without a limit, a ring with fewer slots than `ring_slots` holds every streamed group, which could as well stay.
    ring_choices = range(1 if limit is not None else ring_slots, ring_slots + 1)
    if not bool((best >= 0).all()):
        for largest, slots in itertools.product(_ring_sizes(stage), ring_choices):
            room = available - slots * stage.sizes[largest]
            room = room if limit is None else np.minimum(room, limit)
            mixes, complete = _mixes(stage, room, largest)
            exact = exact and complete
            for mix in mixes:
                resident = _valid_bytes(mix, stage=stage, room=room, slots=slots if slots < ring_slots else None)
                _keep_better(best, counts, resident, mix)
        exact = exact and len(stage.sizes) <= _MAX_RING_SIZES
    return Residency(counts=tuple(counts), resident_bytes=best, exact=exact)


def least_bytes(stage: StageSizes, *, ring_slots: int, limit: IntArray | None = None) -> IntArray:
    """Return the smallest `available` with which each stage fits: everything resident, or only the largest groups."""
    whole = stage.total_bytes
    unlimited = np.iinfo(np.int64).max // 4  # so that sums of it with other needs do not wrap
    cap = np.int64(unlimited) if limit is None else limit
    least = np.where(whole <= cap, whole, unlimited)
    for largest in _ring_sizes(stage):
        size = stage.sizes[largest]
        forced = _bytes_of(stage.counts[:largest], stage.sizes[:largest], like=whole)
        streamed = sum(stage.counts[largest:], np.zeros_like(whole))
        need = forced + np.minimum(ring_slots, streamed) * size
        least = np.minimum(least, np.where((forced <= cap) & (streamed > 0), need, unlimited))
    return least


def most_bytes(stage: StageSizes, available: IntArray, *, ring_slots: int, limit: IntArray | None = None) -> IntArray:
    """Return bytes that no resident set can exceed, as if a part of a group could stay; -1 where nothing fits.

    Arguments as for `choose_resident`, which comes to within the size of one group of it.
    """
    whole = stage.total_bytes
    cap = whole if limit is None else np.minimum(limit, whole)
    most = np.where((whole <= available) & (whole <= cap), whole, np.int64(-1))
    slots = 1 if limit is not None else ring_slots
    for largest, size in enumerate(stage.sizes):
        forced = _bytes_of(stage.counts[:largest], stage.sizes[:largest], like=whole)
        room = np.minimum(available - slots * size, cap)
        most = np.where(forced <= room, np.maximum(most, room), most)
    return most


def _ring_sizes(stage: StageSizes) -> range:
    """Return which sizes are tried as the largest streamed one."""
    num_sizes = len(stage.sizes)
    return range(num_sizes if num_sizes <= _MAX_RING_SIZES else _FEW_RING_SIZES)


def _mixes(stage: StageSizes, room: IntArray, largest: int) -> tuple[Iterator[list[IntArray]], bool]:
    """Return resident counts worth trying when no streamed group is larger than `sizes[largest]`, and whether all are.

    The most numerous size fills what the others leave; the others are enumerated.
    """
    most = [int(count.max(initial=0)) for count in stage.counts]
    candidates = range(largest, len(stage.sizes))
    filler = max(candidates, key=lambda index: most[index])
    others = [index for index in candidates if index != filler and most[index]]
    if math.prod(most[index] + 1 for index in others) <= _MAX_MIXES:
        picks = itertools.product(*(range(most[index] + 1) for index in others))
        return (_fill(stage, room, largest, (*zip(others, pick, strict=True), (filler, None))) for pick in picks), True
    order = tuple((index, None) for index in candidates)
    return iter([_fill(stage, room, largest, order)]), False


def _fill(stage: StageSizes, room: IntArray, largest: int, order: Sequence[tuple[int, int | None]]) -> list[IntArray]:
    """Take all groups larger than `sizes[largest]`, then so many of each size in `order` (None: as many as fit)."""
    chosen = [
        np.broadcast_to(count, room.shape) if index < largest else np.zeros_like(room)
        for index, count in enumerate(stage.counts)
    ]
    left = room - _bytes_of(chosen[:largest], stage.sizes[:largest], like=room)
    for index, pick in order:
        fitting = np.maximum(left, 0) // stage.sizes[index] if pick is None else np.int64(pick)
        chosen[index] = np.minimum(stage.counts[index], fitting)
        left = left - chosen[index] * stage.sizes[index]
    return chosen


def _valid_bytes(mix: list[IntArray], *, stage: StageSizes, room: IntArray, slots: int | None) -> IntArray:
    """Return the bytes of `mix`, or -1 where it does not fit or a short ring of `slots` cannot hold all it streams."""
    resident = _bytes_of(mix, stage.sizes, like=room)
    valid = resident <= room
    if slots is not None:
        streamed = sum((total - kept for total, kept in zip(stage.counts, mix, strict=True)), np.zeros_like(room))
        valid &= streamed <= slots
    return np.where(valid, resident, np.int64(-1))


def _keep_better(best: IntArray, counts: list[IntArray], resident: IntArray, mix: list[IntArray]) -> None:
    """Take `mix` into `counts`, and its bytes into `best`, where they are more."""
    better = resident > best
    if bool(better.any()):
        np.copyto(best, resident, where=better)
        for index, kept in enumerate(mix):
            np.copyto(counts[index], kept, where=better)


def _bytes_of(counts: Sequence[IntArray], sizes: Sequence[int], like: IntArray | None = None) -> IntArray:
    start = np.int64(0) if like is None else np.zeros_like(like)
    return np.asarray(sum((count * size for count, size in zip(counts, sizes, strict=True)), start), dtype=np.int64)
