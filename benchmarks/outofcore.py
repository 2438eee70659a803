"""Models larger than memory, beside what people would use instead: seconds and bytes of a token, against the disk.

    python -m benchmarks.outofcore [--json] [--plot STEM] [--rounds N] [--models NAME …] [--engines NAME …]
                                   [--ratios R …] [--expert-shares S …] [--peers DIR] [--directory DIR]

Every engine gets the same model, the same tokens and the same limit, a control group's: all that its process and its
page cache may hold. The budget of a dense model is its size at one byte a parameter over each of `--ratios`; that of a
mixture holds all but the experts, `--expert-shares` of these, and 0.42 GB for the process. Nothing of the model is in
the page cache when a case begins. Tokens are given, not chosen, so that all engines decode the same ones; seconds and
bytes (the process's own counter of reads from disks) are counted after a prompt and warm steps. Rounds are interleaved,
the table shows medians. Plain parallel reads of the same files past the page cache, before and after each case, are the
disk's bound:

    share    = bytes read for a token / plain read rate / seconds of a token
    of floor = (model's bytes - budget) / plain read rate / seconds of a token

Other engines live in environments of their own below `--peers` (see docs/benchmarks.md); the plot is drawn by `DIR/hf`.
An engine that cannot do a case gets a row with the reason.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.outofcore_engines import ENGINES, StreamingEngine, engine_named
from benchmarks.outofcore_figures import (
    HEADERS,
    CaseKey,
    Run,
    dense_budget_bytes,
    mixture_budget_bytes,
    plot_order,
    refused_case,
    summarised_case,
    table_row,
)
from benchmarks.outofcore_runs import NotRun, Workload, run_case
from benchmarks.random_mixture import SMALL_MIXTURE
from benchmarks.serving_models import RANDOM_MODELS, ModelFiles, model_files
from benchmarks.table import print_json, print_table

__all__ = ["main"]

_SEED = 7
_NUM_PROMPT_TOKENS = 16
_MIXTURE = "random-moe"
_CHECKPOINT_BYTES_PER_PARAMETER = 2
_NOT_BY_DEFAULT = ("teengine-bf16",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, run the rounds, print the table and draw the plot."""
    options = _options(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    engines = [engine_named(name, Path(options.peers)) for name in options.engines]
    cases: list[dict[str, Any]] = []
    for name in options.models:
        files = model_files(name, directory)
        for ratio, budget_bytes in _budgets(files, options):
            cases += _side_by_side(engines, files, (ratio, budget_bytes), options)
    print_table(HEADERS, [table_row(case) for case in cases])
    if options.plot:
        _plot(cases, Path(options.plot), Path(options.peers))
    if options.json:
        print_json({"cases": cases})


def _budgets(files: ModelFiles, options: argparse.Namespace) -> list[tuple[float, int]]:
    """Return how many times larger the model is than each budget, and the budget."""
    num_parameters = _num_bytes(files.checkpoint_files) // _CHECKPOINT_BYTES_PER_PARAMETER
    if files.name != _MIXTURE:
        return [(ratio, dense_budget_bytes(num_parameters, ratio)) for ratio in options.ratios]
    budgets = [
        mixture_budget_bytes(num_parameters, SMALL_MIXTURE.num_expert_parameters, share)
        for share in options.expert_shares
    ]
    return [(num_parameters / budget, budget) for budget in budgets]


def _side_by_side(
    engines: Sequence[StreamingEngine], files: ModelFiles, budget: tuple[float, int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run all engines under one budget, round after round."""
    workload = _workload(files, options)
    reasons = {engine.name: reason for engine in engines if (reason := engine.absence())}
    runs: dict[str, list[Run]] = {}
    for _ in range(options.rounds):
        for engine in engines:
            if engine.name in reasons:
                continue
            print(f"{files.name} in {budget[1] / 1e9:.2f} GB: {engine.name} …", file=sys.stderr, flush=True)
            try:
                run = run_case(engine, files, workload, budget[1], Path(options.directory) / "scratch")
            except NotRun as refusal:
                reasons[engine.name] = str(refusal)
            else:
                runs.setdefault(engine.name, []).append(run)
    return [_case(engine, files, budget, runs.get(engine.name, []), reasons) for engine in engines]


def _case(
    engine: StreamingEngine,
    files: ModelFiles,
    budget: tuple[float, int],
    runs: Sequence[Run],
    reasons: dict[str, str],
) -> dict[str, Any]:
    ratio, budget_bytes = budget
    key = CaseKey(
        engine=engine.name,
        precision=engine.precision,
        model=files.name,
        model_bytes=0 if engine.absence() else _num_bytes(engine.weight_files(files)),
        budget_bytes=budget_bytes,
        ratio=ratio,
        all_read=files.name != _MIXTURE,
    )
    return summarised_case(key, runs) if runs else refused_case(key, reasons[engine.name])


def _workload(files: ModelFiles, options: argparse.Namespace) -> Workload:
    rng = random.Random(_SEED)
    num_tokens = _NUM_PROMPT_TOKENS + options.warm_tokens + options.tokens
    token_ids = [rng.randrange(files.vocab_size) for _ in range(num_tokens)]
    return Workload(
        prompt=token_ids[:_NUM_PROMPT_TOKENS],
        forced=token_ids[_NUM_PROMPT_TOKENS:],
        num_warm=options.warm_tokens,
        warm_seconds=options.seconds / 2,
        min_tokens=min(options.min_tokens, options.tokens),
        max_seconds=options.seconds,
        num_threads=len(os.sched_getaffinity(0)),
        timeout_seconds=options.timeout,
    )


def _plot(cases: Sequence[dict[str, Any]], stem: Path, peers_dir: Path) -> None:
    python = peers_dir / "hf" / "bin" / "python"
    if not python.exists():
        print(f"no plot: there is no {python}", file=sys.stderr)
        return
    program = Path(__file__).parent / "peers" / "plot_outofcore.py"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as order:
        order.write(json.dumps(plot_order(cases)))
        order.flush()
        subprocess.run([str(python), str(program), order.name, str(stem)], check=True)


def _num_bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    kept = Path(tempfile.gettempdir()) / "teengine-benchmarks"
    engines = [name for name in ENGINES if name not in _NOT_BY_DEFAULT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--plot", default="", help="write STEM.svg and STEM.png", metavar="STEM")
    parser.add_argument("--rounds", type=int, default=3, help="times each case runs (default 3)")
    parser.add_argument("--models", nargs="+", default=["random-3b", _MIXTURE], choices=list(RANDOM_MODELS))
    parser.add_argument("--engines", nargs="+", default=engines, choices=list(ENGINES))
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2, 4], help="dense model / budget")
    parser.add_argument("--expert-shares", nargs="+", type=float, default=[0.25], help="of experts in the budget")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens that count (default 64)")
    parser.add_argument("--min-tokens", type=int, default=4, help="least tokens that count (default 4)")
    parser.add_argument("--warm-tokens", type=int, default=16, help="most tokens before those (default 16)")
    parser.add_argument("--seconds", type=float, default=15, help="when to stop counting, at the least tokens")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that a case may take in all")
    parser.add_argument("--peers", default=str(kept / "peers"), help="where the other engines' environments are")
    parser.add_argument("--directory", default=str(kept), help="where models are kept: on the disk to be measured")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
