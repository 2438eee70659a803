"""How a peer is asked and answers: a JSON object in the file that it is given, a JSON list on the last line it prints.

Asked: `model_dir`, `gguf_file`, `prompts` (lists of token ids), `streams` (how many at once, a case each),
`num_tokens`, `num_threads`. Answered: a case for each number of streams, with the seconds since the start of the case
at which each token of each stream was there.
"""

import json
import sys
import time
from pathlib import Path

__all__ = ["Stopwatch", "answer", "asked"]


class Stopwatch:
    """Notes when the tokens of each stream of one case arrive."""

    def __init__(self, num_streams):
        """Start now."""
        self.start = time.perf_counter()
        self.stamps = [[] for _ in range(num_streams)]

    def note(self, stream, num_tokens=1):
        """A stream has got so many more tokens."""
        self.stamps[stream] += [time.perf_counter() - self.start] * num_tokens


def asked():
    """Return what the peer is asked for."""
    return json.loads(Path(sys.argv[1]).read_text("utf-8"))


def answer(cases):
    """Print the stamps of each case, keyed by its number of streams."""
    print(json.dumps([{"streams": streams, "stamps": stamps} for streams, stamps in cases.items()]), flush=True)
