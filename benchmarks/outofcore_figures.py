"""The arithmetic of the out-of-core benchmark: budgets, figures of a run, medians, bounds and the table. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "HEADERS",
    "CaseKey",
    "Run",
    "bound_curve",
    "dense_budget_bytes",
    "floor_seconds",
    "mixture_budget_bytes",
    "plot_order",
    "refused_case",
    "run_figures",
    "summarised_case",
    "table_row",
]

# What a process with torch holds beside weights: its private part of interpreter and libraries 0.27 GB, workspace and
# KV 0.13 GB. Granted to every engine with a mixture, where the budget is told in experts; one without torch has it for
# more of the model.
_PROCESS_BYTES = 400 << 20

_NUM_CURVE_STEPS = 64

HEADERS = (
    "MODEL", "BUDGET", "MODEL/BUDGET", "ENGINE", "PRECISION", "MODEL SIZE", "S/TOKEN", "READ/TOKEN", "PLAIN READS",
    "SHARE", "OF FLOOR", "PEAK", "NOTE",
)  # fmt: skip

Stamps = Sequence[tuple[float, int]]
"""Seconds and bytes read from disks so far: before the first counted token, and after each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseKey:
    """One engine with one model under one limit."""

    engine: str
    precision: str
    """Of weights and activations, for people."""
    model: str
    model_bytes: int
    """Of the weights in the form that this engine reads."""
    budget_bytes: int
    """The limit of the control group: all that the engine's process and its page cache may hold."""
    ratio: float
    """The model at one byte a parameter, whatever the engine stores, over the budget."""
    all_read: bool
    """Whether a token needs every weight, so that there is a floor for what must be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One case once."""

    seconds_per_token: float
    bytes_per_token: float
    num_tokens: int
    peak_bytes: int | None
    """The most that the group held, page cache included; None where there was no limit."""
    read_bytes_per_second: float
    """Of plain reads of the same files, the better of before and after."""
    note: str = ""


def dense_budget_bytes(num_parameters: int, ratio: float) -> int:
    """Return the budget that a model of one byte a parameter exceeds `ratio` times."""
    return int(num_parameters / ratio)


def mixture_budget_bytes(num_parameters: int, num_expert_parameters: int, expert_share: float) -> int:
    """Return the budget that holds everything but the experts and a share of these, at one byte a parameter."""
    return int(num_parameters - num_expert_parameters * (1 - expert_share)) + _PROCESS_BYTES


def run_figures(stamps: Stamps, peak_bytes: int | None, read_bytes_per_second: float, note: str = "") -> Run:
    """Return what a run's stamps amount to, which are at least two.

    Means over the counted tokens, for seconds and bytes alike, so that their quotient is the rate that was reached.
    """
    (first_seconds, first_bytes), (last_seconds, last_bytes) = stamps[0], stamps[-1]
    num_tokens = len(stamps) - 1
    return Run(
        seconds_per_token=(last_seconds - first_seconds) / num_tokens,
        bytes_per_token=(last_bytes - first_bytes) / num_tokens,
        num_tokens=num_tokens,
        peak_bytes=peak_bytes,
        read_bytes_per_second=read_bytes_per_second,
        note=note,
    )


def floor_seconds(key: CaseKey, read_bytes_per_second: float) -> float | None:
    """Return the seconds below which no engine can be that reads this form of the model with this budget.

    What cannot be kept must be read for every token: as if all of the budget held weights and nothing else. None for a
    mixture, whose tokens do not need all weights.
    """
    if not key.all_read:
        return None
    return bound_curve(key.model_bytes, [key.budget_bytes], read_bytes_per_second)[0]


def bound_curve(model_bytes: int, budgets_bytes: Sequence[int], read_bytes_per_second: float) -> list[float]:
    """Return the floor at each budget, for the plot."""
    return [max(0, model_bytes - budget) / read_bytes_per_second for budget in budgets_bytes]


def plot_order(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `benchmarks/peers/plot_outofcore.py` draws: for each model, lines of (budget bytes, seconds)."""
    measured = [case for case in cases if not case["reason"]]
    models = dict.fromkeys(case["model"] for case in measured)
    return {"models": [_plotted(model, [case for case in measured if case["model"] == model]) for model in models]}


def _plotted(model: str, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    engines: dict[str, list[tuple[int, float]]] = {}
    for case in cases:
        engines.setdefault(case["engine"], []).append((case["budget_bytes"], case["seconds_per_token"]))
    budgets = sorted({case["budget_bytes"] for case in cases})
    return {
        "model": model,
        "engines": {name: sorted(points) for name, points in engines.items()},
        "bounds": _dense_bounds(cases, budgets) or _mixture_bounds(cases, budgets),
    }


def _dense_bounds(cases: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
    """Return the floor of each form of the weights, finely enough for a line past the budgets on both sides."""
    low, high = budgets[0] * 3 // 4, budgets[-1] * 5 // 4
    grid = [low + (high - low) * step // _NUM_CURVE_STEPS for step in range(_NUM_CURVE_STEPS + 1)]
    bounds: dict[str, list[tuple[int, float]]] = {}
    for case in cases:
        if case["floor_seconds"] is not None:
            curve = bound_curve(case["model_bytes"], grid, case["read_bytes_per_second"])
            bounds.setdefault(f"least for {case['precision'].split()[0]}", list(zip(grid, curve, strict=True)))
    return bounds


def _mixture_bounds(cases: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
    """Return the disk's time for the fewest bytes that an engine read, as there is no floor that is known."""
    fewest = [
        min(case["bytes_per_token"] / case["read_bytes_per_second"] for case in cases if case["budget_bytes"] == budget)
        for budget in budgets
    ]
    return {"the fewest bytes that an engine read": list(zip(budgets, fewest, strict=True))}


def summarised_case(key: CaseKey, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the medians of all rounds; `share` is the disk's time for the bytes that were read over the token's."""
    seconds = statistics.median(run.seconds_per_token for run in runs)
    num_bytes = statistics.median(run.bytes_per_token for run in runs)
    rate = statistics.median(run.read_bytes_per_second for run in runs)
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    floor = floor_seconds(key, rate)
    return {
        **_named(key),
        "seconds_per_token": seconds,
        "bytes_per_token": num_bytes,
        "peak_bytes": int(statistics.median(peaks)) if peaks else None,
        "share": num_bytes / rate / seconds,
        "read_bytes_per_second": rate,
        "floor_seconds": floor,
        "floor_share": None if floor is None else floor / seconds,
        "num_tokens": min(run.num_tokens for run in runs),
        "num_rounds": len(runs),
        "reason": "",
        "note": runs[-1].note,
    }


def refused_case(key: CaseKey, reason: str) -> dict[str, Any]:
    """Return the row of an engine that cannot do the case, with the same keys and no figures."""
    figures = (
        "seconds_per_token", "bytes_per_token", "peak_bytes", "share", "read_bytes_per_second", "floor_seconds",
        "floor_share",
    )  # fmt: skip
    return {
        **_named(key),
        **dict.fromkeys(figures),
        "num_tokens": 0,
        "num_rounds": 0,
        "reason": reason,
        "note": "",
    }


def table_row(case: Mapping[str, Any]) -> list[str]:
    """Return the cells under `HEADERS`."""
    about = [
        case["model"],
        f"{case['budget_bytes'] / 1e9:.2f} GB",
        f"{case['ratio']:.1f}",
        case["engine"],
        case["precision"],
        f"{case['model_bytes'] / 1e9:.2f} GB",
    ]
    if case["reason"]:
        return [*about, *["–"] * 6, case["reason"]]
    peak, floor_share = case["peak_bytes"], case["floor_share"]
    return [
        *about,
        f"{case['seconds_per_token']:.3f}",
        f"{case['bytes_per_token'] / 1e9:.3f} GB",
        f"{case['read_bytes_per_second'] / 1e9:.2f} GB/s",
        f"{case['share']:.2f}",
        "–" if floor_share is None else f"{floor_share:.2f}",
        "no limit" if peak is None else f"{peak / 1e9:.2f} GB",
        case["note"],
    ]


def _named(key: CaseKey) -> dict[str, Any]:
    return {
        "engine": key.engine,
        "model": key.model,
        "model_bytes": key.model_bytes,
        "budget_bytes": key.budget_bytes,
        "precision": key.precision,
        "ratio": key.ratio,
    }
