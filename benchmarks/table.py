"""Tables for people on standard output, one JSON object on the last line for machines."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["print_json", "print_table"]


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns with a gutter of two spaces."""
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
    for row in [headers, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def print_json(result: Mapping[str, Any]) -> None:
    """Print the result as one line, the last of a run with `--json`."""
    print(json.dumps(result), flush=True)
