"""Which groups of a stage stay on the device: the most bytes that fit beside the ring for the rest.

Every resident byte of a dense group saves the same time, so only the number of bytes counts. A cached byte of routed
experts saves only the share of it that a token asks for, so dense groups go first, and the cache gets what they leave.
Groups of one size are exchangeable, so a stage is described by how many groups it has of each size, and the answer by
how many of those are resident. One function answers for one stage and for a whole array of stages; all arrays broadcast
against each other.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ExpertSizes",
    "IntArray",
    "Residency",
    "StageSizes",
    "choose_resident",
    "least_bytes",
    "most_saved",
    "ring_bytes",
    "spread",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Ways to mix sizes that are tried before the choice falls back to largest-first. Real models have one to three sizes
# (a layer, another kind of layer, the head) and need at most about a hundred.
_MAX_MIXES = 128
# Up to so many sizes, each is tried as the largest streamed one; of more, only the first few.
_MAX_RING_SIZES = 8
_FEW_RING_SIZES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSizes:
    """Routed experts of stages, an element for each stage."""

    total_bytes: IntArray
    least_bytes: IntArray
    """Of a cache that a step can run with; never above the total."""
    share: float
    """Of the experts' bytes, what one token asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSizes:
    """How many groups stages have of each size. Routed experts are no part of them."""

    sizes: tuple[int, ...]
    """Distinct, largest first."""
    counts: tuple[IntArray, ...]
    """One array for each size, an element for each stage."""

    experts: ExpertSizes

    @property
    def dense_bytes(self) -> IntArray:
        """Bytes of all groups of each stage."""
        return _bytes_of(self.counts, self.sizes)

    @property
    def total_bytes(self) -> IntArray:
        """Bytes of all groups and routed experts."""
        return self.dense_bytes + self.experts.total_bytes

    @property
    def bytes_per_token(self) -> FloatArray:
        """What a token needs of each stage."""
        return self.dense_bytes + self.experts.share * self.experts.total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """The choice for each stage."""

    counts: tuple[IntArray, ...]
    """Resident groups of each size."""
    resident_bytes: IntArray
    """Of dense groups; -1 where the stage does not fit at all."""
    cached_bytes: IntArray
    """Of routed experts, for the cache; all of them where they fit."""
    saved_bytes: FloatArray
    """Of `bytes_per_token`, what need not be moved."""
    exact: bool
    """No choice could save more."""


def ring_bytes(streamed_sizes: Sequence[int], ring_slots: int) -> int:
    """Return the staging ring of a stage: a slot of the largest streamed group each, no more slots than groups."""
    return min(ring_slots, len(streamed_sizes)) * max(streamed_sizes, default=0)


def spread(num_groups: int, num_chosen: int) -> list[bool]:
    """Return which of `num_groups` in a row are chosen, as evenly as possible."""
    return [(index + 1) * num_chosen // num_groups > index * num_chosen // num_groups for index in range(num_groups)]


def choose_resident(
    stage: StageSizes, available: IntArray, *, ring_slots: int, limit: IntArray | None = None
) -> Residency:
    """Return the resident set that saves most such that it, its ring and a cache of experts fit into `available`.

    Args:
        stage: Groups of each stage.
        available: Bytes for weights, ring and cache; may be negative.
        ring_slots: Most slots of a ring.
        limit: Most resident bytes, whatever would fit; a cache is never smaller than the least.
    """
    cap = _cap(stage, limit)
    dense = stage.dense_bytes
    fits = (dense <= cap) & (dense + stage.experts.least_bytes <= available)
    best = _Best(stage, available, cap)
    best.keep(np.where(fits, dense, np.int64(-1)), 0, list(stage.counts))
    exact = True
    # Without a limit, a ring with fewer slots than `ring_slots` holds every streamed group, which could as well stay.
    ring_choices = range(1 if limit is not None else ring_slots, ring_slots + 1)
    if not bool((best.resident >= 0).all()):
        for largest, slots in itertools.product(_ring_sizes(stage), ring_choices):
            ring = slots * stage.sizes[largest]
            room = np.minimum(available - ring - stage.experts.least_bytes, cap)
            mixes, complete = _mixes(stage, room, largest)
            exact = exact and complete
            for mix in mixes:
                resident = _valid_bytes(mix, stage=stage, room=room, slots=slots if slots < ring_slots else None)
                best.keep(resident, ring, mix)
        exact = exact and len(stage.sizes) <= _MAX_RING_SIZES
    return Residency(
        counts=tuple(best.counts),
        resident_bytes=best.resident,
        cached_bytes=best.cached,
        saved_bytes=best.saved,
        exact=exact,
    )


class _Best:
    """The best choice so far, for each stage."""

    def __init__(self, stage: StageSizes, available: IntArray, cap: IntArray) -> None:
        shape = np.broadcast_shapes(stage.dense_bytes.shape, available.shape)
        self.resident = np.full(shape, np.int64(-1))
        self.cached = np.zeros(shape, dtype=np.int64)
        self.saved = np.full(shape, -1.0)
        self.counts = [np.zeros(shape, dtype=np.int64) for _ in stage.counts]
        self._experts, self._available, self._cap = stage.experts, available, cap

    def keep(self, resident: IntArray, ring_bytes: int, counts: Sequence[IntArray]) -> None:
        """Take a choice where it is valid and saves more."""
        cached = _cached_bytes(self._experts, self._available - ring_bytes - resident, self._cap - resident)
        saved = np.where(resident >= 0, resident + self._experts.share * cached, -1.0)
        better = saved > self.saved
        if bool(better.any()):
            np.copyto(self.resident, resident, where=better)
            np.copyto(self.cached, cached, where=better)
            np.copyto(self.saved, saved, where=better)
            for kept, count in zip(self.counts, counts, strict=True):
                np.copyto(kept, count, where=better)


def _cap(stage: StageSizes, limit: IntArray | None) -> IntArray:
    """Return the most bytes of a stage that may be resident."""
    total = stage.total_bytes
    return total if limit is None else np.minimum(limit, total)


def _cached_bytes(experts: ExpertSizes, room: IntArray, below_cap: IntArray) -> IntArray:
    """Return the bytes of the cache in what dense groups and ring leave."""
    wanted = np.minimum(np.minimum(room, below_cap), experts.total_bytes)
    return np.maximum(wanted, experts.least_bytes)


def least_bytes(stage: StageSizes, *, ring_slots: int, limit: IntArray | None = None) -> IntArray:
    """Return the smallest `available` with which each stage fits: everything resident, or only the largest groups."""
    dense = stage.dense_bytes
    unlimited = np.iinfo(np.int64).max // 4  # so that sums of it with other needs do not wrap
    cap = _cap(stage, limit)
    least = np.where(dense <= cap, dense, unlimited)
    for largest in _ring_sizes(stage):
        size = stage.sizes[largest]
        forced = _bytes_of(stage.counts[:largest], stage.sizes[:largest], like=dense)
        streamed = sum(stage.counts[largest:], np.zeros_like(dense))
        need = forced + np.minimum(ring_slots, streamed) * size
        least = np.minimum(least, np.where((forced <= cap) & (streamed > 0), need, unlimited))
    return least + stage.experts.least_bytes


def most_saved(stage: StageSizes, available: IntArray, *, ring_slots: int, limit: IntArray | None = None) -> FloatArray:
    """Return bytes of a token that no choice can save more of, as if a part of a group could stay; -1: nothing fits.

    Arguments as for `choose_resident`, which comes to within the size of one group of it.
    """
    dense, cap, least = stage.dense_bytes, _cap(stage, limit), stage.experts.least_bytes

    def saved(resident: IntArray, ring_bytes: int) -> FloatArray:
        cached = _cached_bytes(stage.experts, available - ring_bytes - resident, cap - resident)
        return resident + stage.experts.share * cached

    most = np.where((dense + least <= available) & (dense <= cap), saved(dense, 0), -1.0)
    slots = 1 if limit is not None else ring_slots
    for largest, size in enumerate(stage.sizes):
        forced = _bytes_of(stage.counts[:largest], stage.sizes[:largest], like=dense)
        room = np.minimum(np.minimum(available - slots * size - least, cap), dense)
        most = np.where(forced <= room, np.maximum(most, saved(room, slots * size)), most)
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


def _bytes_of(counts: Sequence[IntArray], sizes: Sequence[int], like: IntArray | None = None) -> IntArray:
    start = np.int64(0) if like is None else np.zeros_like(like)
    return np.asarray(sum((count * size for count, size in zip(counts, sizes, strict=True)), start), dtype=np.int64)
