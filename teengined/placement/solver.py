"""Solves the placement problem: exactly where the sets of devices are few, by local search over orders beyond."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teengined.core.plan import Objective
from teengined.placement.residency import FloatArray
from teengined.placement.routes import Leg, Route, Router, SubsetRouter, num_subsets
from teengined.placement.search import best_order, order_router

__all__ = ["Instance", "Solution", "solve"]

# Subset states times classes times L² that are worth an exact answer, which takes about 2 ns each: 12 different devices
# and 100 layers for one sum, 8 for the many sums that a period takes.
_EXACT_WORK = {Objective.LATENCY: 12 * 2**12 * 100**2, Objective.THROUGHPUT: 8 * 2**8 * 100**2}
# However many layers there are, so many devices are always solved exactly.
_EXACT_DEVICES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A placement problem as arrays. Legend of `routes`; here every device is its own class."""

    cost_dse: FloatArray
    disk_dse: FloatArray
    """Seconds of the host's one disk within `cost_dse`."""
    hop_dd: FloatArray
    objective: Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The stages found; the legs name devices, not classes."""

    route: Route
    exact: bool
    """`route.value` is the optimum of the instance."""


def solve(instance: Instance) -> Solution | None:
    """Return the best stages, or None where nothing fits (or, beyond the exact range, where nothing was found)."""
    classes = identical_devices(instance)
    if _is_small(instance, classes):
        first = np.array([members[0] for members in classes])
        collapsed = Instance(
            cost_dse=instance.cost_dse[first],
            disk_dse=instance.disk_dse[first],
            hop_dd=_class_hops(instance.hop_dd, classes),
            objective=instance.objective,
        )
        router = SubsetRouter([len(members) for members in classes])
        route = minimise(collapsed, router)
        return route and Solution(route=_name_devices(route, classes), exact=True)
    joins = {Objective.LATENCY: np.add, Objective.THROUGHPUT: np.maximum}
    order = best_order(instance.cost_dse, instance.hop_dd, joins[instance.objective])
    route = minimise(instance, order_router(order))
    return route and Solution(route=route, exact=False)


def minimise(instance: Instance, router: Router) -> Route | None:
    """Return the route with the least latency or period that `router` can see."""
    if instance.objective is Objective.LATENCY:
        return router(instance.cost_dse, instance.hop_dd, np.add)
    return _least_period(instance, router)


def _least_period(instance: Instance, router: Router) -> Route | None:
    """Return the route with the least max(slowest stage, slowest hop, seconds of the shared disk).

    The first two fall with the permitted time t of a stage, the disk's sum rises as t falls: the optimum lies where
    they cross, and only costs that occur are worth trying as t.
    """
    fastest = router(instance.cost_dse, instance.hop_dd, np.maximum)
    if fastest is None:
        return None
    quick = _route_within(instance, router, fastest.value, instance.cost_dse, instance.hop_dd)
    if _disk_seconds(instance, quick.legs) <= fastest.value:
        return Route(fastest.value, quick.legs)
    no_hop_dd = np.zeros_like(instance.hop_dd)
    frugal = functools.partial(_route_within, instance, router, stage_cse=instance.disk_dse, hop_cc=no_hop_dd)
    best = frugal(fastest.value)
    best = Route(max(best.value, fastest.value), best.legs)
    costs = np.concatenate([instance.cost_dse.ravel(), instance.hop_dd.ravel()])
    times = np.unique(costs[(costs > fastest.value) & (costs < best.value)])
    low, high = 0, len(times)
    while low < high:
        middle = (low + high) // 2
        route = frugal(float(times[middle]))
        if max(route.value, times[middle]) < best.value:
            best = Route(float(max(route.value, times[middle])), route.legs)
        low, high = (low, middle) if route.value <= times[middle] else (middle + 1, high)
    return best


def _route_within(
    instance: Instance, router: Router, seconds: float, stage_cse: FloatArray, hop_cc: FloatArray
) -> Route:
    """Return the route of least sum among those with no stage and no hop above `seconds`; there is one."""
    allowed = seconds * (1 + 1e-12)
    route = router(
        np.where(instance.cost_dse <= allowed, stage_cse, np.inf),
        np.where(instance.hop_dd <= allowed, hop_cc, np.inf),
        np.add,
    )
    assert route is not None
    return route


def _disk_seconds(instance: Instance, legs: Sequence[Leg]) -> float:
    return float(sum(instance.disk_dse[leg.device_class, leg.layer_start, leg.layer_end] for leg in legs))


def identical_devices(instance: Instance) -> tuple[tuple[int, ...], ...]:
    """Return classes of devices that can be exchanged without changing the cost of anything."""
    classes: list[list[int]] = []
    for device in range(len(instance.cost_dse)):
        home = next((members for members in classes if _exchangeable(instance, members[0], device)), None)
        if home is None:
            classes.append([device])
        else:
            home.append(device)
    return tuple(tuple(members) for members in classes)


def _exchangeable(instance: Instance, a: int, b: int) -> bool:
    hop_dd = instance.hop_dd
    swapped = np.arange(len(hop_dd))
    swapped[[a, b]] = b, a
    return (
        np.array_equal(hop_dd[np.ix_(swapped, swapped)], hop_dd)
        and np.array_equal(instance.cost_dse[a], instance.cost_dse[b])
        and np.array_equal(instance.disk_dse[a], instance.disk_dse[b])
    )


def _class_hops(hop_dd: FloatArray, classes: Sequence[Sequence[int]]) -> FloatArray:
    """Return hops between classes; within a class between its first two (all are equal), infinite where it has one."""
    first = [members[0] for members in classes]
    hop_cc = hop_dd[np.ix_(first, first)].copy()
    for index, members in enumerate(classes):
        hop_cc[index, index] = hop_dd[members[0], members[1]] if len(members) > 1 else np.inf
    return hop_cc


def _is_small(instance: Instance, classes: Sequence[Sequence[int]]) -> bool:
    num_devices, num_layers, _ = instance.cost_dse.shape
    work = num_subsets([len(members) for members in classes]) * len(classes) * num_layers**2
    return num_devices <= _EXACT_DEVICES or work <= _EXACT_WORK[instance.objective]


def _name_devices(route: Route, classes: Sequence[Sequence[int]]) -> Route:
    """Give each leg the next device of its class."""
    unused = [iter(members) for members in classes]
    legs = tuple(Leg(next(unused[leg.device_class]), leg.layer_start, leg.layer_end) for leg in route.legs)
    return Route(route.value, legs)
