"""How a peer is asked to decode a model larger than its memory, and how it counts; we are asked in the same way.

Asked by a JSON object in the file named on the command line: `model_dir`, `gguf_file`, `scratch_dir`, `prompt` and
`forced` (token ids: every step gets the next of `forced`, whatever the model would say, so that all engines do the
same), `num_warm` and `warm_seconds` (most steps before the first that counts, and when to stop them), `min_tokens`,
`max_seconds` (of counted steps, once there are `min_tokens`), `num_threads`, `limit_bytes` (of the control group, for
engines that want to know), `compression`.
Answered on the last line: `stamps`, for the moment before the first counted step and after each one the seconds and
the bytes that the process had read from disks.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["answer", "asked", "decode"]


def asked() -> dict[str, Any]:
    """Return what the peer is asked for."""
    return json.loads(Path(sys.argv[1]).read_text("utf-8"))


def decode(order: Mapping[str, Any], step: Callable[[Sequence[int]], object]) -> list[tuple[float, int]]:
    """Return the stamps; `step` takes token ids that follow those before and returns when their logits are there."""
    step(order["prompt"])
    forced, begin = iter(order["forced"]), time.perf_counter()
    for number in range(order["num_warm"]):
        if number and time.perf_counter() - begin > order["warm_seconds"]:
            break
        step([next(forced)])
    stamps = [_now()]
    for num_tokens, token in enumerate(forced, start=1):
        step([token])
        stamps.append(_now())
        if num_tokens >= order["min_tokens"] and stamps[-1][0] - stamps[0][0] > order["max_seconds"]:
            break
    return stamps


def answer(stamps: list[tuple[float, int]], **notes: object) -> None:
    """Print the answer; `notes` are further keys, such as how much the engine kept in memory."""
    print(json.dumps({"stamps": stamps, **notes}), flush=True)


def _now() -> tuple[float, int]:
    return time.perf_counter(), _read_bytes()


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "read_bytes":
            return int(value)
    raise RuntimeError("/proc/self/io tells no read_bytes")
