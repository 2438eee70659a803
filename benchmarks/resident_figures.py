"""The arithmetic of the resident benchmark: rates of decoding and of prompts, and how engines compare. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["COMPARISONS", "Comparison", "EngineRun", "comparison_rows", "engine_run", "summarised_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """One engine in one round."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: Mapping[int, float]
    """By length of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A quotient of two engines' figures that is aimed at."""

    name: str
    figure: str
    """Key of a case."""
    engine: str
    over: str
    target: float


COMPARISONS = (
    Comparison(
        name="int8 decode / Q8_0",
        figure="decode_tokens_per_s",
        engine="teengine-int8",
        over="llama.cpp-q8_0",
        target=1.0,
    ),
    Comparison(
        name="int4 decode / int8",
        figure="decode_tokens_per_s",
        engine="teengine-int4",
        over="teengine-int8",
        target=1.5,
    ),
    Comparison(
        name="int4 decode / Q4_0",
        figure="decode_tokens_per_s",
        engine="teengine-int4",
        over="llama.cpp-q4_0",
        target=0.7,
    ),
    *(
        Comparison(
            name=f"prompt of {length}, {label} / Q8_0",
            figure=f"prefill_{length}_tokens_per_s",
            engine=engine,
            over="llama.cpp-q8_0",
            target=target,
        )
        for length in (128, 512)
        for engine, label, target in (
            ("teengine-int8", "int8 activations", 2.0),
            ("teengine-int8-stock", "stock operators", 1.0),
        )
    ),
)


def engine_run(stamps: Mapping[int, Sequence[float]]) -> EngineRun:
    """Return the rates of one round from the moments of tokens, by length of the prompt.

    The shortest prompt's answer is the one that decoding is measured on; the first token ends a prompt.
    """
    decoded = stamps[min(stamps)]
    return EngineRun(
        decode_tokens_per_s=(len(decoded) - 1) / (decoded[-1] - decoded[0]),
        prefill_tokens_per_s={length: length / moments[0] for length, moments in stamps.items()},
    )


def summarised_engine(engine: str, runs: Sequence[EngineRun], lengths: Sequence[int], reason: str) -> dict[str, Any]:
    """Return the medians of all rounds, or the reason why there are none."""
    case: dict[str, Any] = {"engine": engine, "decode_tokens_per_s": None}
    if runs:
        case["decode_tokens_per_s"] = statistics.median(run.decode_tokens_per_s for run in runs)
    for length in lengths:
        rates = [run.prefill_tokens_per_s[length] for run in runs]
        case[f"prefill_{length}_tokens_per_s"] = statistics.median(rates) if rates else None
    return {**case, "num_rounds": len(runs), "reason": reason}


def comparison_rows(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each comparison whose two figures are there, with its quotient."""
    by_engine = {case["engine"]: case for case in cases}
    rows: list[dict[str, Any]] = []
    for wanted in COMPARISONS:
        figure, over = (by_engine.get(name, {}).get(wanted.figure) for name in (wanted.engine, wanted.over))
        if figure is not None and over is not None:
            rows.append({"name": wanted.name, "reached": figure / over, "target": wanted.target})
    return rows
