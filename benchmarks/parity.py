"""Are our tokens those of transformers? Greedy, fp32, the same weights; exits 1 if any row differs.

    python -m benchmarks.parity [--json] [--only smollm2|architectures]

The real model: SmolLM2-135M-Instruct, 8 prompts, 64 tokens each, through a private daemon in five placements, against
transformers' own loader of the same GGUF file and its own `generate`. Tiny random models of many architectures: through
one stage and three, resident and streamed, against `generate` on the checkpoint they were converted from.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.parity_architectures import architecture_rows
from benchmarks.parity_row import ParityRow
from benchmarks.parity_smollm2 import smollm2_rows
from benchmarks.table import print_json

__all__ = ["main"]

_LINE = "{:<18}  {:<48}  {:>7}  {:>6}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a row differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--only", choices=("smollm2", "architectures"), help="run one of the two tables")
    options = parser.parse_args(arguments)
    rows: list[ParityRow] = []
    with tempfile.TemporaryDirectory(prefix="te-parity-") as scratch:
        if options.only != "architectures":
            rows += _table(lambda: smollm2_rows(Path(scratch)))
        if options.only != "smollm2":
            rows += _table(lambda: architecture_rows(Path(scratch)))
    if options.json:
        print_json({"cases": [{"model": r.model, "placement": r.placement, "same": r.same} for r in rows]})
    different = [row for row in rows if not row.same]
    print(f"{len(rows) - len(different)} rows the same, {len(different)} different", flush=True)
    return 1 if different else 0


def _table(rows: Callable[[], Iterable[ParityRow]]) -> list[ParityRow]:
    """Print each row as it comes; a row may take a minute."""
    printed: list[ParityRow] = []
    for row in rows():
        if not printed:
            print(_LINE.format("MODEL", "PLACEMENT", "PROMPTS", "TOKENS", "RESULT"))
        print(
            _LINE.format(row.model, row.placement, row.num_prompts, row.num_tokens, row.difference or "same"),
            flush=True,
        )
        printed.append(row)
    return printed


if __name__ == "__main__":
    sys.exit(main())
