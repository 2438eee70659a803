"""The streamed case of `benchmarks.promises`, as a program to be run inside a memory limit: prints its figures."""

import json
import sys
from pathlib import Path

from benchmarks.promise_cases import streamed_figures

__all__ = ["main"]


def main() -> None:
    """Read the arguments `DIRECTORY PACKAGE` and print the figures as JSON."""
    print(json.dumps(streamed_figures(Path(sys.argv[1]), sys.argv[2])), flush=True)


if __name__ == "__main__":
    main()
