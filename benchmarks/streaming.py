"""Tokens per second of a ~1B Llama in int8 at 100 %, 50 % and 0 % resident, against the bound of the machine.

    python -m benchmarks.streaming [--json] [--rounds N] [--tokens N] [--directory DIR]

The model is random and made on the first run. Each case runs in a process of its own inside a memory limit of its
budget + 10 %, so that the page cache cannot help; reads go past the page cache. Cases are interleaved with fresh
measurements of plain large reads, and the table shows medians over the rounds.

    bound = 1 / max(streamed bytes / measured read rate, seconds of a token when all is resident)

For the resident case the bound is the bytes of the weights at the measured memory rate instead.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory_limit import run_limited
from benchmarks.random_llama import ONE_BILLION, write_random_llama
from benchmarks.read_bandwidth import disk_bytes_per_second, memory_bytes_per_second
from benchmarks.streaming_case import plan_case
from benchmarks.table import print_json, print_table

__all__ = ["main"]

_SHARES = (1.0, 0.5, 0.0)
_MARGIN = 1.10
# What the process needs beside its weights: interpreter, torch, transformers, thread stacks. Measured as its baseline
# by the case itself; this much is granted before it is known.
_LIBRARIES_BYTES = 700 << 20
# At full residence nothing is streamed; the rate is then for the table only.
_LEAST_READ_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Round:
    """One case once, and the better of the read rates measured just before and just after it."""

    figures: Mapping[str, Any]
    read_bytes_per_second: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model if needed, run the rounds, print the table."""
    options = _options(arguments)
    package_dir = _package(Path(options.directory))
    rounds: dict[float, list[Round]] = {share: [] for share in _SHARES}
    for _ in range(options.rounds):
        for share in _SHARES:
            before = _read_rate(package_dir, share)
            figures = _run_case(package_dir, share, options.tokens)
            rounds[share].append(Round(figures, max(before, _read_rate(package_dir, share))))
    memory_rate = memory_bytes_per_second()
    resident_seconds = statistics.median(r.figures["seconds_per_token"] for r in rounds[1.0])
    cases = [_summary(share, rounds[share], resident_seconds, memory_rate) for share in _SHARES]
    _print(cases)
    if options.json:
        print_json({"cases": cases, "memory_bytes_per_second": memory_rate})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=3, help="times each case runs (default 3)")
    parser.add_argument("--tokens", type=int, default=24, help="tokens a case decodes (default 24)")
    parser.add_argument(
        "--directory",
        default=str(Path(tempfile.gettempdir()) / "teengine-benchmarks"),
        help="where the model is kept: on the disk to be measured",
    )
    return parser.parse_args(arguments)


def _package(directory: Path) -> Path:
    """Return the int8 package, made on the first run."""
    package_dir = directory / "models" / "random-1b-int8"
    if package_dir.is_dir():
        return package_dir
    with tempfile.TemporaryDirectory(dir=_made(directory)) as source:
        print("making a random Llama of about a billion parameters …", file=sys.stderr, flush=True)
        write_random_llama(ONE_BILLION, Path(source))
        command = ["convert", source, "--store", str(directory / "models"), "--name", package_dir.name]
        subprocess.run(
            [sys.executable, "-m", "teengined.modelpack", *command, "--precision", "int8"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return package_dir


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _run_case(package_dir: Path, share: float, num_tokens: int) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "benchmarks.streaming_case", str(package_dir), str(share), str(num_tokens)]
    budget_bytes = _budget_bytes(package_dir, share)
    return run_limited(command, int(budget_bytes * _MARGIN) + _LIBRARIES_BYTES)


def _read_rate(package_dir: Path, share: float) -> float:
    """Return the rate of plain reads of about as many bytes as the case streams for each token."""
    files = sorted(package_dir.glob("units/*.safetensors"))
    num_bytes = int(sum(file.stat().st_size for file in files) * (1 - share))
    return disk_bytes_per_second(files, max(num_bytes, _LEAST_READ_BYTES))


def _budget_bytes(package_dir: Path, share: float) -> int:
    return plan_case(package_dir, share)[1].stages[0].total_bytes


def _summary(share: float, rounds: Sequence[Round], resident_seconds: float, memory_rate: float) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(r.figures[key] for r in rounds)

    seconds, streamed_bytes = median("seconds_per_token"), median("streamed_bytes_per_token")
    read_rate = statistics.median(r.read_bytes_per_second for r in rounds)
    if streamed_bytes:
        bound_seconds = max(streamed_bytes / read_rate, resident_seconds)
    else:
        bound_seconds = median("resident_bytes") / memory_rate
    return {
        "resident": share,
        "tokens_per_s": 1 / seconds,
        "bound_tokens_per_s": 1 / bound_seconds,
        "share": bound_seconds / seconds,
        "streamed_bytes_per_token": streamed_bytes,
        "read_bytes_per_s": read_rate,
        "stall_s_per_token": median("stall_seconds_per_token"),
        "peak_bytes": median("peak_bytes"),
        "budget_bytes": median("budget_bytes"),
    }


def _print(cases: Sequence[Mapping[str, Any]]) -> None:
    headers = ["RESIDENT", "TOK/S", "BOUND", "SHARE", "STREAMED/TOKEN", "PLAIN READS", "STALL", "PEAK", "BUDGET"]
    rows = [
        [
            f"{case['resident']:.0%}",
            f"{case['tokens_per_s']:.2f}",
            f"{case['bound_tokens_per_s']:.2f}",
            f"{case['share']:.2f}",
            f"{case['streamed_bytes_per_token'] / 1e9:.2f} GB",
            f"{case['read_bytes_per_s'] / 1e9:.2f} GB/s",
            f"{case['stall_s_per_token'] * 1e3:.0f} ms",
            f"{case['peak_bytes'] / 1e6:.0f} MB",
            f"{case['budget_bytes'] / 1e6:.0f} MB",
        ]
        for case in cases
    ]
    print_table(headers, rows)


if __name__ == "__main__":
    main()
