"""What streams are promised whatever happens beside them, measured, each against its target.

    python -m benchmarks.promises [--json] [--cases NAME …] [--directory DIR]

    streamed     0 % of the weights resident, under a memory limit: 16 streams against one
    stages       two stages on one core each against one stage on two cores, 8 streams
    prefix       time to the first token of a second prompt that begins with the same 512 tokens
    long-prompt  gaps between tokens of 8 streams beside a prompt of 4,000 tokens
    overload     10 times more requests than can be served for a minute, then half of what can

Models are those of `benchmarks.serving`. Cases compare within one run, on the same threads.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.overload import measure_overload
from benchmarks.promise_cases import (
    Promise,
    measure_long_prompt,
    measure_prefix,
    measure_stages,
    measure_streamed,
)
from benchmarks.table import print_json, print_table

__all__ = ["main"]

_CASES: Mapping[str, Callable[[Path], Sequence[Promise]]] = {
    "streamed": measure_streamed,
    "stages": measure_stages,
    "prefix": measure_prefix,
    "long-prompt": measure_long_prompt,
    "overload": measure_overload,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--cases", nargs="+", default=list(_CASES), choices=list(_CASES))
    parser.add_argument("--directory", default=str(Path(tempfile.gettempdir()) / "teengine-benchmarks"))
    options = parser.parse_args(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    promises: list[Promise] = []
    for name in options.cases:
        print(f"{name} …", file=sys.stderr, flush=True)
        measured = _CASES[name](directory)
        for promise in measured:
            print(f"  {promise.what}: {promise.reached:.3g}", file=sys.stderr, flush=True)
        promises += measured
    _print(promises)
    if options.json:
        print_json({"promises": [promise.mapping() for promise in promises]})


def _print(promises: Sequence[Promise]) -> None:
    rows: list[list[str]] = [
        [
            promise.case,
            promise.what,
            f"{promise.reached:.3g}",
            f"{'>=' if promise.at_least else '<='} {promise.target:g}",
            "kept" if promise.kept else "MISSED",
            _details(promise.details),
        ]
        for promise in promises
    ]
    print_table(["CASE", "WHAT", "REACHED", "TARGET", "", "FROM"], rows)


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in details.items())


if __name__ == "__main__":
    main()
