"""What drawing a step's tokens costs the host, which the next step waits for.

    python -m benchmarks.sampling [--json]

Logits are random normal. `flat` ones are the hardest for top-p, since thousands of tokens are in its set; `peaked` ones
are like a trained model's, where a few tokens hold most of the probability. Medians; every draw has a fresh position.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.table import print_json, print_table
from teengined.core.sampling import SamplingParams
from teengined.engine.sampler import Sampler, SampleRow
from teengined.protocol.worker_messages import SequenceOpen

__all__ = ["main"]

_NUM_ROWS = (1, 16, 64)
_VOCABULARIES = (49_152, 151_936)
_NUM_TIMES = 15
_NUM_PROMPT_TOKENS = 1000
_SPREADS = {"flat": 1.0, "peaked": 4.0}
_CASES = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=0.8),
    "top_p": SamplingParams(temperature=0.8, top_p=0.9),
    "top_k": SamplingParams(temperature=0.8, top_k=50),
    "min_p": SamplingParams(temperature=0.8, min_p=0.05),
    "typical": SamplingParams(temperature=0.8, typical_p=0.9),
    "penalties": SamplingParams(repetition_penalty=1.1, frequency_penalty=0.2),
    "logprobs": SamplingParams(logprobs=20),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """One case."""

    case: str
    logits: str
    vocab_size: int
    rows: int
    median_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    results: list[_Result] = []
    for vocab_size, (logits, spread) in itertools.product(_VOCABULARIES, _SPREADS.items()):
        logits_WV = torch.randn(max(_NUM_ROWS), vocab_size, generator=torch.Generator().manual_seed(1)) * spread
        for case in _CASES:
            for num_rows in _NUM_ROWS:
                median_ms = median(_times(case, logits_WV[:num_rows])) * 1e3
                results.append(
                    _Result(case=case, logits=logits, vocab_size=vocab_size, rows=num_rows, median_ms=median_ms)
                )
    _print(results)
    if options.json:
        print_json({"cases": [asdict(result) for result in results]})


def _times(case: str, logits_WV: torch.Tensor) -> Iterator[float]:
    """Yield the seconds of each time that all rows are drawn."""
    num_rows, vocab_size = logits_WV.shape
    sampler = Sampler(vocab_size=vocab_size, package_dir=Path(tempfile.gettempdir()))
    for row in range(num_rows):
        opened = SequenceOpen(
            sequence_id=row,
            num_prompt_tokens=_NUM_PROMPT_TOKENS,
            sampling=_CASES[case],
            choice=row,
            history=tuple(range(_NUM_PROMPT_TOKENS)),
        )
        sampler.open(opened)
    for position in range(_NUM_PROMPT_TOKENS, _NUM_PROMPT_TOKENS + _NUM_TIMES):
        rows = [SampleRow(row, position) for row in range(num_rows)]
        start_seconds = time.perf_counter()
        sampler.sample(rows, logits_WV)
        yield time.perf_counter() - start_seconds
    sampler.shutdown()


def _print(results: Sequence[_Result]) -> None:
    by_case: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        key = (result.case, result.logits, str(result.vocab_size))
        by_case.setdefault(key, []).append(f"{result.median_ms:.2f}")
    headers = ["case", "logits", "vocabulary", *(f"{num_rows} rows, ms" for num_rows in _NUM_ROWS)]
    print_table(headers, [[*key, *cells] for key, cells in by_case.items()])


if __name__ == "__main__":
    main()
