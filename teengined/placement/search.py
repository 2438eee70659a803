"""Beam search over orders of many devices. For one order the best cut is exact, so only the order is searched."""

import random
from collections.abc import Callable, Sequence

import numpy as np

from teengined.placement.residency import FloatArray
from teengined.placement.routes import Route, Router, order_route

__all__ = ["best_order", "order_router"]

# Orders kept from round to round, and neighbours tried of each. 32 devices and 100 layers cost about 1 ms an order.
_BEAM_WIDTH = 4
_NEIGHBOURS = 12
_MAX_ORDERS = 500
_MAX_IDLE_ROUNDS = 4

Order = tuple[int, ...]


def order_router(order: Sequence[int]) -> Router:
    """Return a router that sees only routes along `order`."""

    def route_along(cost_cse: FloatArray, hop_cc: FloatArray, join: np.ufunc) -> Route | None:
        return order_route(order, cost_cse, hop_cc, join)

    return route_along


def best_order(cost_dse: FloatArray, hop_dd: FloatArray, join: np.ufunc) -> Order:
    """Return the best order found. The random moves have a fixed seed: equal inputs give equal orders."""
    values: dict[Order, float] = {}

    def value_of(order: Order) -> float:
        if order not in values:
            route = order_route(order, cost_dse, hop_dd, join)
            values[order] = np.inf if route is None else route.value
        return values[order]

    beam = sorted(_first_orders(cost_dse, hop_dd), key=value_of)[:_BEAM_WIDTH]
    return _improve(beam, value_of, values)


def _improve(beam: list[Order], value_of: Callable[[Order], float], values: dict[Order, float]) -> Order:
    moves = random.Random(0)
    idle_rounds = 0
    while idle_rounds < _MAX_IDLE_ROUNDS and len(values) < _MAX_ORDERS:
        best = value_of(beam[0])
        neighbours = {_neighbour(order, moves) for order in beam for _ in range(_NEIGHBOURS)}
        beam = sorted({*beam, *neighbours}, key=lambda order: (value_of(order), order))[:_BEAM_WIDTH]
        idle_rounds = 0 if value_of(beam[0]) < best else idle_rounds + 1
    return beam[0]


def _first_orders(cost_dse: FloatArray, hop_dd: FloatArray) -> list[Order]:
    """Return orders that people would try: as given, by speed of a fair share, and from neighbour to neighbour."""
    num_devices, num_layers, _ = cost_dse.shape
    share = max(1, num_layers // num_devices)
    speed_d = cost_dse.diagonal(share, axis1=1, axis2=2).min(axis=1)
    by_speed = tuple(int(device) for device in np.argsort(speed_d, kind="stable"))
    given = tuple(range(num_devices))
    chains = [_nearest_chain(first, hop_dd, speed_d) for first in by_speed[:_BEAM_WIDTH]]
    return list(dict.fromkeys([given, by_speed, by_speed[::-1], *chains]))


def _nearest_chain(first: int, hop_dd: FloatArray, speed_d: FloatArray) -> Order:
    """Go from each device to the one with the cheapest hop, of equals to the fastest."""
    chain = [first]
    left = set(range(len(hop_dd))) - {first}
    while left:
        here = chain[-1]
        nearest = min(left, key=lambda device: (hop_dd[here, device], speed_d[device], device))
        chain.append(nearest)
        left.remove(nearest)
    return tuple(chain)


def _neighbour(order: Order, moves: random.Random) -> Order:
    """Swap two devices, or move one to another place."""
    devices = list(order)
    i, j = moves.randrange(len(devices)), moves.randrange(len(devices))
    if moves.random() < 0.5:
        devices[i], devices[j] = devices[j], devices[i]
    else:
        devices.insert(j, devices.pop(i))
    return tuple(devices)
