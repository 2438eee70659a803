"""Tokens per second and latencies at 1, 4, 16 and 64 streams, beside what people would use instead.

    python -m benchmarks.serving [--json] [--rounds N] [--models NAME …] [--engines NAME …] [--streams N …]
                                 [--peers DIR] [--directory DIR]

All engines answer the same prompts (random token ids) on the same threads, one after the other, round after round;
the table shows medians over the rounds. Models: `random-1b`, a random Llama of 1.07 billion parameters, made on the
first run, and `smollm2`. Other engines live in environments of their own below `--peers` (`DIR/vllm`, `DIR/llama`; see
docs/benchmarks.md); one that is not there is left out, and the table says so. transformers is the project's own.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving_engines import ENGINES, Engine, Workload, engine_named
from benchmarks.serving_models import MODELS, model_files
from benchmarks.streams import StreamFigures, figures_of
from benchmarks.table import print_json, print_table

__all__ = ["main"]

Measured = dict[tuple[str, str, int], list[StreamFigures]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    options = _options(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    engines = [engine_named(name, Path(options.peers)) for name in options.engines]
    left_out = {engine.name: reason for engine in engines if (reason := engine.absence())}
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
    measured: Measured = {}
    for name in options.models:
        files = model_files(name, directory)
        workload = Workload.random(files, options.streams, options.tokens, options.prompt_tokens)
        for _ in range(options.rounds):
            for engine in engines:
                if engine.name not in left_out and engine.can_run(files):
                    _measure(engine, workload, measured)
    cases = [_case(key, figures) for key, figures in measured.items()]
    _print(cases)
    if options.json:
        print_json({"cases": cases, "left_out": left_out})


def _measure(engine: Engine, workload: Workload, measured: Measured) -> None:
    print(f"{engine.name}: {workload.files.name} …", file=sys.stderr, flush=True)
    for num_streams, stamps in engine.run(workload).items():
        measured.setdefault((engine.name, workload.files.name, num_streams), []).append(figures_of(stamps))


def _case(key: tuple[str, str, int], figures: Sequence[StreamFigures]) -> dict[str, Any]:
    engine, model, num_streams = key
    rounds = [item.mapping() for item in figures]
    medians = {name: statistics.median(item[name] for item in rounds) for name in rounds[0]}
    return {"engine": engine, "model": model, "streams": num_streams, **medians}


def _print(cases: Sequence[dict[str, Any]]) -> None:
    rows = [
        [
            case["model"],
            str(case["streams"]),
            case["engine"],
            f"{case['tokens_per_s']:.1f}",
            *(f"{case[name]:.0f}" for name in ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")),
        ]
        for case in sorted(cases, key=lambda case: (case["model"], case["streams"]))
    ]
    print_table(["MODEL", "STREAMS", "ENGINE", "TOK/S", "TTFT P50 MS", "P99", "BETWEEN TOKENS P50 MS", "P99"], rows)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    kept = Path(tempfile.gettempdir()) / "teengine-benchmarks"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=1, help="times each engine runs (default 1)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 64], help="default: 1 4 16 64")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer (default 48)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of each prompt (default 64)")
    parser.add_argument("--peers", default=str(kept / "peers"), help="where the other engines' environments are")
    parser.add_argument("--directory", default=str(kept), help="where models are kept")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
