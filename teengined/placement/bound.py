"""Lower bounds for placements that are too many to search: how far from the optimum a plan can be at most.

Latency: Lagrangian relaxation of "each device at most once". With a price u_d >= 0 for every use of device d, the
cheapest route that may come back to a device as often as it likes, minus the sum of all prices, is never above the
optimum (Fisher, "The Lagrangian Relaxation Method for Solving Integer Programming Problems", Management Science 1981);
subgradient steps of Polyak's length raise the prices of devices that are used too often.

Period: within t, device d runs at most n_d(t) layers; the layers of all devices must add up (the reciprocal form of the
throughput bound of Helix, arXiv 2406.01566); and the shared disk must deliver what no device can keep.
"""

from collections.abc import Callable

import numpy as np

from teengined.core.plan import Objective
from teengined.placement.residency import FloatArray
from teengined.placement.solver import Instance
from teengined.placement.table import interval_sums

__all__ = ["latency_bound", "lower_bound", "period_bound"]

# Subgradient steps; 32 devices and 100 layers cost about 3 ms each. The step is halved after so many in vain.
_MAX_STEPS = 120
_PATIENCE = 6
# Halvings of the worth of a layer: more than a float has digits for is in vain.
_BISECTIONS = 50


def lower_bound(instance: Instance, achieved_seconds: float) -> float:
    """Return seconds that no route of the instance can be below.

    Args:
        instance: The placement problem.
        achieved_seconds: Of any route, to aim at.
    """
    if instance.objective is Objective.LATENCY:
        return latency_bound(instance, achieved_seconds)
    return period_bound(instance)


def latency_bound(instance: Instance, achieved_seconds: float) -> float:
    """Return the best Lagrangian bound found in a fixed number of steps."""
    hop_dd = _hops_to_others(instance.hop_dd)
    prices_d = _first_prices(instance)
    best, scale, idle = 0.0, 1.0, 0
    for _ in range(_MAX_STEPS):
        value, uses_d = _cheapest_walk(instance.cost_dse + prices_d[:, None, None], hop_dd)
        value -= float(prices_d.sum())
        idle = 0 if value > best else idle + 1
        best = max(best, value)
        if idle >= _PATIENCE:
            scale, idle = scale / 2, 0
        # A device without a price that is not used is no violation: the constraint is an inequality.
        surplus_d = np.where((prices_d == 0) & (uses_d == 0), 0, uses_d - 1)
        norm = float((surplus_d**2).sum())
        if norm == 0 or achieved_seconds - best <= 1e-9 * achieved_seconds:
            break
        step = scale * (achieved_seconds - value) / norm
        prices_d = np.maximum(0.0, prices_d + step * surplus_d)
    return min(best, achieved_seconds)


def _first_prices(instance: Instance) -> FloatArray:
    """Return prices from a coarser problem: share out L layers when only their number on a device counts.

    With c_d(n) the cheapest stage of n layers, its dual is: maximise r L - sum_d u_d over the worth r of a layer, where
    u_d = max(0, max_n r n - c_d(n)) is what device d earns. The dual is concave in r: bisect where the layers taken
    cross L.
    """
    num_devices, num_layers, _ = instance.cost_dse.shape
    lengths_n = np.asarray(range(1, num_layers + 1), dtype=np.float64)
    cost_dn = _cheapest_by_length(instance.cost_dse)
    if num_devices > 1:
        cost_dn = cost_dn + _hops_to_others(instance.hop_dd).min(axis=0)[:, None]
    low, high = 0.0, float(cost_dn[np.isfinite(cost_dn)].max(initial=0.0))
    for _ in range(_BISECTIONS):
        worth = (low + high) / 2
        earned_dn = worth * lengths_n - cost_dn
        taken_d = np.where(earned_dn.max(axis=1) > 0, lengths_n[earned_dn.argmax(axis=1)], 0)
        low, high = (low, worth) if taken_d.sum() >= num_layers else (worth, high)
    return np.maximum(0.0, (high * lengths_n - cost_dn).max(axis=1))


def _hops_to_others(hop_dd: FloatArray) -> FloatArray:
    """Forbid the step from a device to itself, which no plan takes."""
    others_dd = hop_dd.copy()
    np.fill_diagonal(others_dd, np.inf)
    return others_dd


def _cheapest_by_length(cost_dse: FloatArray) -> FloatArray:
    """Return each device's cheapest stage of n = 1 … L layers, shape [d, n - 1]."""
    num_devices, num_layers, _ = cost_dse.shape
    cost_dn = np.empty((num_devices, num_layers))
    for length in range(1, num_layers + 1):
        cost_dn[:, length - 1] = cost_dse.diagonal(length, axis1=1, axis2=2).min(axis=1)
    return cost_dn


def period_bound(instance: Instance) -> float:
    """Return the larger of the time to share out the layers, and the disk's time for what cannot be resident."""
    num_devices, num_layers, _ = instance.cost_dse.shape
    lengths_se = interval_sums([1] * num_layers)

    def can_share(seconds: float) -> bool:
        within_dse = np.where(instance.cost_dse <= seconds, lengths_se, 0)
        return int(within_dse.reshape(num_devices, -1).max(axis=1).sum()) >= num_layers

    times = np.unique(instance.cost_dse[np.isfinite(instance.cost_dse)])
    return max(_first_true(times, can_share), _disk_bound(instance))


def _disk_bound(instance: Instance) -> float:
    """Return the least sum of disk seconds when devices may be used again and hops are free."""
    value, _ = _cheapest_walk(instance.disk_dse, np.zeros_like(instance.hop_dd))
    return value


def _first_true(times: FloatArray, holds: Callable[[float], bool]) -> float:
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(float(times[middle])) else (middle + 1, high)
    return float(times[low])


def _cheapest_walk(cost_dse: FloatArray, hop_dd: FloatArray) -> tuple[float, FloatArray]:
    """Return the least sum over walks that may use devices again, and how often that walk uses each."""
    num_devices, num_layers, _ = cost_dse.shape
    done_de = np.full((num_devices, num_layers + 1), np.inf)
    arrival_ds = np.full((num_devices, num_layers + 1), np.inf)
    arrival_ds[:, 0] = 0.0
    cost_eds = np.ascontiguousarray(cost_dse.transpose(2, 0, 1))
    for end in range(1, num_layers + 1):
        done_de[:, end] = (arrival_ds[:, :end] + cost_eds[end, :, :end]).min(axis=1)
        arrival_ds[:, end] = (done_de[:, end][:, None] + hop_dd).min(axis=0)
    uses_d = np.zeros(num_devices)
    end, device = num_layers, int(done_de[:, num_layers].argmin())
    value = float(done_de[device, num_layers])
    while np.isfinite(value):
        uses_d[device] += 1
        start = int((arrival_ds[device, :end] + cost_eds[end, device, :end]).argmin())
        if start == 0:
            break
        end, device = start, int((done_de[:, start] + hop_dd[:, device]).argmin())
    return value, uses_d
