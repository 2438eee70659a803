"""A ~1B Llama that fits into memory, by us and by llama.cpp: tokens per second of one stream and of its prompt.

    python -m benchmarks.resident [--json] [--rounds N] [--engines NAME …] [--peers DIR] [--directory DIR]

The engines of `benchmarks.serving`, with one stream, answer the same random prompts on the same threads, one after the
other, round after round; the tables show medians. Decoding is measured after the shortest prompt, from its first token
to its last. `teengine-int8-stock` runs without our kernels (`TEENGINE_NO_NATIVE=1`), and so with activations in bf16.
Files in Q4_0 are made by llama.cpp itself from the one in Q8_0. An engine that is not there gets a row with the reason.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.resident_figures import EngineRun, comparison_rows, engine_run, summarised_engine
from benchmarks.serving_engines import Workload, engine_named
from benchmarks.serving_models import ModelFiles, model_files, write_q4_gguf
from benchmarks.table import print_json, print_table
from teengined.interfaces.registry import PluginRegistry

__all__ = ["main"]

_ENGINES = ("teengine-int8", "teengine-int8-stock", "teengine-int4", "llama.cpp-q8_0", "llama.cpp-q4_0")
_MODEL = "random-1b"
# Of answers to all prompts but the shortest, of which only the first token counts.
_FEW_TOKENS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and print the tables."""
    options = _options(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    files, peers_dir = model_files(_MODEL, directory), Path(options.peers)
    reasons = {name: reason for name in options.engines if (reason := _absence(name, peers_dir))}
    runs: dict[str, list[EngineRun]] = {}
    for _ in range(options.rounds):
        for name in options.engines:
            if name not in reasons:
                print(f"{name} …", file=sys.stderr, flush=True)
                runs.setdefault(name, []).append(_run(name, peers_dir, files, options))
    cases = [
        summarised_engine(name, runs.get(name, []), options.prompt_tokens, reasons.get(name, ""))
        for name in options.engines
    ]
    comparisons = comparison_rows(cases)
    _print(cases, comparisons, options.prompt_tokens)
    if options.json:
        print_json({"cases": cases, "comparisons": comparisons})


def _absence(name: str, peers_dir: Path) -> str:
    kind, _, rest = name.partition("-")
    if kind == "llama.cpp":
        return engine_named("llama.cpp", peers_dir).absence()
    precision = rest.removesuffix("-stock")
    known = PluginRegistry.load().precisions()
    return "" if precision in known else f"no precision strategy {precision} is installed"


def _run(name: str, peers_dir: Path, files: ModelFiles, options: argparse.Namespace) -> EngineRun:
    stamps: dict[int, Sequence[float]] = {}
    for length in options.prompt_tokens:
        num_tokens = options.tokens if length == min(options.prompt_tokens) else _FEW_TOKENS
        workload = Workload.random(files, [1], num_tokens, length)
        stamps[length] = _answer(name, peers_dir, workload)
    return engine_run(stamps)


def _answer(name: str, peers_dir: Path, workload: Workload) -> Sequence[float]:
    """Return when each token of the one stream came."""
    if name.startswith("llama.cpp"):
        engine, files = engine_named("llama.cpp", peers_dir), workload.files
        if name.endswith("q4_0"):
            python = peers_dir / "llama" / "bin" / "python"
            files = replace(files, gguf_file=write_q4_gguf(files.gguf_file, python))
        return engine.run(replace(workload, files=files))[1][0]
    with _stock_operators() if name.endswith("-stock") else contextlib.nullcontext():
        return engine_named(name.removesuffix("-stock"), peers_dir).run(workload)[1][0]


@contextlib.contextmanager
def _stock_operators() -> Generator[None]:
    """Have programs that are started meanwhile leave our kernels out."""
    os.environ["TEENGINE_NO_NATIVE"] = "1"
    try:
        yield
    finally:
        del os.environ["TEENGINE_NO_NATIVE"]


def _print(cases: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]], lengths: Sequence[int]) -> None:
    keys = ["decode_tokens_per_s", *(f"prefill_{length}_tokens_per_s" for length in lengths)]
    rows = [
        [case["engine"], *("–" if case[key] is None else f"{case[key]:.1f}" for key in keys), case["reason"]]
        for case in cases
    ]
    print_table(["ENGINE", "DECODE TOK/S", *(f"PROMPT OF {length} TOK/S" for length in lengths), "NOTE"], rows)
    if comparisons:
        print()
        rows = [[row["name"], f"{row['reached']:.2f}", f"{row['target']:.1f}"] for row in comparisons]
        print_table(["COMPARISON", "REACHED", "AIM"], rows)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    kept = Path(tempfile.gettempdir()) / "teengine-benchmarks"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=3, help="times each engine runs (default 3)")
    parser.add_argument("--engines", nargs="+", default=list(_ENGINES), choices=list(_ENGINES))
    parser.add_argument("--tokens", type=int, default=48, help="of the answer that decoding is measured on")
    parser.add_argument("--prompt-tokens", nargs="+", type=int, default=[128, 512], help="default: 128 512")
    parser.add_argument("--peers", default=str(kept / "peers"), help="where the other engines' environments are")
    parser.add_argument("--directory", default=str(kept), help="where models are kept")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
