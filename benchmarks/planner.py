"""How long the planner takes, how far its plans are from a proven bound, and how far the baselines are from its plans.

    python -m benchmarks.planner [--json] [--fleets N] [--devices N ...]

Plans are made for fleets of random cards (see `fleets`) with 100 equal layers; the gap is the share by which a better
plan could beat the one found, 0 where it is proven optimal. The baselines plan 10 layers on 4 cards.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.fleets import fleet_planning
from benchmarks.table import print_json, print_table
from teengined.core.errors import DoesNotFit
from teengined.core.plan import Objective, Plan
from teengined.interfaces.policy import PlacementPolicy
from teengined.interfaces.registry import PluginRegistry
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan

__all__ = ["main"]

_DEVICES = (2, 4, 8, 12, 16, 24, 32)
_LAYERS = 100
_SEEDS = 3
_BASELINE_DEVICES = 4
_BASELINE_LAYERS = 10


@dataclass(frozen=True, slots=True)
class Speed:
    """Plans for fleets of one size: the slowest and the loosest of a few seeds."""

    objective: Objective
    num_devices: int
    seconds: float
    gap: float


@dataclass(frozen=True, slots=True)
class Excess:
    """How many times longer than the optimum a policy's plans take."""

    objective: Objective
    policy: str
    median: float
    p90: float
    failed: int
    """Fleets on which the policy put layers where they do not fit."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    policies = PluginRegistry.load().placement_policies()
    plan(
        _fleet(0, options.devices[0], Objective.LATENCY), policies["optimal"]
    )  # numpy loads here, not in a measurement
    speeds = [
        _speed(policies["optimal"], num_devices, objective)
        for objective in Objective
        for num_devices in options.devices
    ]
    excesses = [excess for objective in Objective for excess in _excesses(policies, objective, options.fleets)]
    _print(speeds, excesses, options.fleets)
    if options.json:
        print_json(
            {"speed": [_speed_record(speed) for speed in speeds], "baselines": list(map(_excess_record, excesses))}
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description="Measure the planner.")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--fleets", type=int, default=300, metavar="N", help="random fleets for the baselines")
    parser.add_argument("--devices", type=int, nargs="+", default=_DEVICES, metavar="N", help="sizes of fleets to time")
    return parser.parse_args(arguments)


def _fleet(seed: int, num_devices: int, objective: Objective) -> PlanningInput:
    return fleet_planning(seed, num_devices=num_devices, num_layers=_LAYERS, objective=objective, distinct=True)


def _speed(policy: PlacementPolicy, num_devices: int, objective: Objective) -> Speed:
    seconds: list[float] = []
    gaps: list[float] = []
    for seed in range(_SEEDS):
        planning = _fleet(seed, num_devices, objective)
        start = time.perf_counter()
        found = plan(planning, policy)
        seconds.append(time.perf_counter() - start)
        gaps.append(found.gap)
    return Speed(objective, num_devices, max(seconds), max(gaps))


def _excesses(policies: Mapping[str, PlacementPolicy], objective: Objective, num_fleets: int) -> list[Excess]:
    ratios: dict[str, list[float]] = {name: [] for name in policies if name != "optimal"}
    for seed in range(num_fleets):
        planning = fleet_planning(seed, num_devices=_BASELINE_DEVICES, num_layers=_BASELINE_LAYERS, objective=objective)
        best = _seconds(plan(planning, policies["optimal"]))
        for name, found in ratios.items():
            try:
                found.append(_seconds(plan(planning, policies[name])) / best)
            except DoesNotFit:
                continue
    return [
        Excess(objective, name, statistics.median(found), _quantile(found, 0.9), num_fleets - len(found))
        for name, found in sorted(ratios.items())
        if found
    ]


def _seconds(found: Plan) -> float:
    return found.seconds_per_token if found.objective is Objective.LATENCY else found.period_seconds


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _print(speeds: Sequence[Speed], excesses: Sequence[Excess], num_fleets: int) -> None:
    print(f"Planning {_LAYERS} layers, worst of {_SEEDS} random fleets")
    rows = [(s.objective.value, str(s.num_devices), f"{s.seconds:.2f} s", f"{s.gap:.1%}") for s in speeds]
    print_table(("OBJECTIVE", "DEVICES", "TIME", "GAP"), rows)
    print(f"\nBaselines on {num_fleets} random fleets of {_BASELINE_DEVICES}, times the optimum")
    rows = [(e.objective.value, e.policy, f"{e.median:.2f}x", f"{e.p90:.2f}x", str(e.failed)) for e in excesses]
    print_table(("OBJECTIVE", "POLICY", "MEDIAN", "P90", "DID NOT FIT"), rows)


def _speed_record(speed: Speed) -> dict[str, Any]:
    return {
        "objective": speed.objective.value,
        "devices": speed.num_devices,
        "layers": _LAYERS,
        "seconds": speed.seconds,
        "gap": speed.gap,
    }


def _excess_record(excess: Excess) -> dict[str, Any]:
    return {
        "objective": excess.objective.value,
        "policy": excess.policy,
        "median": excess.median,
        "p90": excess.p90,
        "did_not_fit": excess.failed,
    }


if __name__ == "__main__":
    main()
