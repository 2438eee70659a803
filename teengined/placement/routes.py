"""Shortest routes through the stage table: exact over subsets of devices, or exact for a given order of them.

A route visits device classes and covers every layer once. Costs are joined by a sum (time of one stream, bytes) or by
a maximum (the slowest stage or hop). Legend: c class of identical devices, s start, e end of a stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from teengined.placement.residency import FloatArray

__all__ = ["Leg", "Route", "Router", "SubsetRouter", "num_subsets", "order_route"]


@dataclass(frozen=True, slots=True)
class Leg:
    """A stage on some device of a class."""

    device_class: int
    layer_start: int
    layer_end: int


@dataclass(frozen=True, slots=True)
class Route:
    """Stages in order and their joined cost."""

    value: float
    legs: tuple[Leg, ...]


class Router(Protocol):
    """Finds the cheapest route that it can see."""

    def __call__(self, cost_cse: FloatArray, hop_cc: FloatArray, join: np.ufunc) -> Route | None:
        """Return the route, or None where every route is infinite.

        Args:
            cost_cse: Cost of a stage.
            hop_cc: Cost of going from one class to another.
            join: `np.add` or `np.maximum`.
        """
        ...


def num_subsets(counts: Sequence[int]) -> int:
    """Return how many different sets of devices there are, when devices of one class count as the same."""
    return int(np.prod([count + 1 for count in counts], dtype=np.float64))


class SubsetRouter:
    """Dynamic program over (set of devices used, last class, layers done): exact.

    A set is a mixed-radix number of how many devices of each class are used. Work is about
    `num_subsets * classes * L * L`, in numpy.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        """Number of devices in each class."""
        self._counts = tuple(counts)
        self._strides = tuple(
            int(np.prod([count + 1 for count in counts[:c]], dtype=np.int64)) for c in range(len(counts))
        )

    def __call__(self, cost_cse: FloatArray, hop_cc: FloatArray, join: np.ufunc) -> Route | None:
        """See `Router`."""
        num_classes, num_layers, _ = cost_cse.shape
        best_uce = np.full((num_subsets(self._counts), num_classes, num_layers + 1), np.inf)
        for used in range(len(best_uce)):
            for added in range(num_classes):
                if self._num_used(used, added) == self._counts[added]:
                    continue
                arrival_s = self._arrivals(best_uce[used], hop_cc[:, added], join) if used else _at_start(num_layers)
                if np.isfinite(arrival_s).any():
                    reached_se = join(arrival_s[:, None], cost_cse[added])
                    best_uce[used + self._strides[added], added] = reached_se.min(axis=0)
        used, last = self._cheapest_end(best_uce[:, :, num_layers])
        if not np.isfinite(best_uce[used, last, num_layers]):
            return None
        value = float(best_uce[used, last, num_layers])
        return Route(value, self._trace(best_uce, (cost_cse, hop_cc, join), used, last))

    def _num_used(self, used: int, device_class: int) -> int:
        return used // self._strides[device_class] % (self._counts[device_class] + 1)

    @staticmethod
    def _arrivals(best_ce: FloatArray, hop_c: FloatArray, join: np.ufunc) -> FloatArray:
        """Return the cost of having done the layers before s and stepped to the next class, shape [L]."""
        return join(best_ce[:, :-1], hop_c[:, None]).min(axis=0)

    def _cheapest_end(self, end_uc: FloatArray) -> tuple[int, int]:
        """Return the set and last class of the cheapest whole route; of equals the one with the fewest devices."""
        ties = np.argwhere(end_uc <= end_uc.min() * (1 + 1e-12))
        ranked = [(sum(self._num_used(int(u), c) for c in range(len(self._counts))), int(u), int(c)) for u, c in ties]
        _, used, last = min(ranked, default=(0, 0, 0))
        return used, last

    def _trace(
        self, best_uce: FloatArray, costs: tuple[FloatArray, FloatArray, np.ufunc], used: int, last: int
    ) -> tuple[Leg, ...]:
        """Walk back from the whole route: each state has one predecessor set, and the best start is found again."""
        cost_cse, hop_cc, join = costs
        num_layers = cost_cse.shape[1]
        end = num_layers
        legs: list[Leg] = []
        while True:
            before = used - self._strides[last]
            arrival_s = self._arrivals(best_uce[before], hop_cc[:, last], join) if before else _at_start(num_layers)
            start = int(join(arrival_s, cost_cse[last, :, end]).argmin())
            legs.append(Leg(last, start, end))
            if not before:
                return tuple(reversed(legs))
            last, used, end = int(join(best_uce[before, :, start], hop_cc[:, last]).argmin()), before, start


def order_route(order: Sequence[int], cost_cse: FloatArray, hop_cc: FloatArray, join: np.ufunc) -> Route | None:
    """Return the cheapest route that visits devices in `order`, leaving out any. Exact, O(D L² + D² L)."""
    num_layers = cost_cse.shape[1]
    sequence = np.asarray(order)
    done_ie = np.full((len(sequence), num_layers + 1), np.inf)
    arrival_is = np.empty((len(sequence), num_layers))
    for index, device in enumerate(sequence):
        arrival_is[index] = _at_start(num_layers)
        if index:
            earlier_s = join(done_ie[:index, :-1], hop_cc[sequence[:index], device][:, None]).min(axis=0)
            np.minimum(arrival_is[index], earlier_s, out=arrival_is[index])
        done_ie[index] = join(arrival_is[index][:, None], cost_cse[device]).min(axis=0)
    index = int(done_ie[:, num_layers].argmin())
    value = float(done_ie[index, num_layers])
    if not np.isfinite(value):
        return None
    legs: list[Leg] = []
    end = num_layers
    while True:
        device = int(sequence[index])
        start = int(join(arrival_is[index], cost_cse[device, :, end]).argmin())
        legs.append(Leg(device, start, end))
        if start == 0:
            return Route(value, tuple(reversed(legs)))
        index, end = int(join(done_ie[:index, start], hop_cc[sequence[:index], device]).argmin()), start


def _at_start(num_layers: int) -> FloatArray:
    """Return arrivals before any stage: no layer done, at no cost (0 is neutral for sums and maxima of costs)."""
    start_s = np.full(num_layers, np.inf)
    start_s[0] = 0.0
    return start_s
