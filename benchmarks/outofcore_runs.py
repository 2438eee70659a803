"""Runs one case of the out-of-core benchmark: nothing of the model in the page cache, inside the limit."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory_limit import MemoryGroup
from benchmarks.outofcore_engines import StreamingEngine
from benchmarks.outofcore_figures import Run, run_figures
from benchmarks.read_bandwidth import disk_bytes_per_second
from benchmarks.serving_models import ModelFiles
from teengined.core.errors import NotAllowed

__all__ = ["NotRun", "Workload", "run_case"]

_MEASURED_READ_BYTES = 1 << 30
_NUM_READ_PASSES = 2
_REASON_CHARACTERS = 200


class NotRun(Exception):
    """The engine cannot do the case; the message says why, for the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What every engine is asked for, under the names of `benchmarks/peers/streamed.py`."""

    prompt: Sequence[int]
    forced: Sequence[int]
    num_warm: int
    warm_seconds: float
    min_tokens: int
    max_seconds: float
    num_threads: int
    timeout_seconds: float
    """Of the whole case, loading included: an engine that has no room left reads its own program again and again."""

    def order(self) -> dict[str, Any]:
        """Return its part of an order."""
        names = ("prompt", "forced", "num_warm", "warm_seconds", "min_tokens", "max_seconds", "num_threads")
        return {name: getattr(self, name) for name in names}


def run_case(
    engine: StreamingEngine, files: ModelFiles, workload: Workload, limit_bytes: int, scratch_dir: Path
) -> Run:
    """Run an engine once and return its figures, beside plain reads of its files measured before and after.

    Raises:
        NotRun: it failed, was killed at the limit, or was not done in time.
    """
    weight_files = engine.weight_files(files)
    order = {**workload.order(), **engine.order(files, scratch_dir), "limit_bytes": limit_bytes}
    rate_before = _read_rate(weight_files)
    drop_from_page_cache(weight_files)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as order_file:
        order_file.write(json.dumps(order))
        order_file.flush()
        command = [*engine.program(), order_file.name]
        said, peak_bytes = _run_limited(command, limit_bytes, workload.timeout_seconds)
    drop_from_page_cache(weight_files)
    rate = max(rate_before, _read_rate(weight_files))
    return run_figures([(s, b) for s, b in said["stamps"]], peak_bytes, rate, str(said.get("note", "")))


def drop_from_page_cache(paths: Sequence[Path]) -> None:
    """Have the kernel forget what it keeps of files, which needs no rights; pages not written yet are written first."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _read_rate(weight_files: Sequence[Path]) -> float:
    return disk_bytes_per_second(weight_files, _MEASURED_READ_BYTES, _NUM_READ_PASSES)


def _run_limited(command: Sequence[str], limit_bytes: int, timeout_seconds: float) -> tuple[dict[str, Any], int | None]:
    try:
        with MemoryGroup(limit_bytes) as group:
            return _run(group.command(command), group, timeout_seconds), group.peak_bytes
    except NotAllowed as refusal:
        raise NotRun(f"no memory limit: {refusal.message}") from refusal


def _run(command: Sequence[str], group: MemoryGroup, timeout_seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, timeout=timeout_seconds, check=False)
        except subprocess.TimeoutExpired:
            raise NotRun(f"not done within {timeout_seconds:.0f} s") from None
        if group.num_oom_kills:
            raise NotRun("killed: it needs more memory than the limit")
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        if done.returncode or not lines:
            errors.seek(0)
            raise NotRun(_last_line(errors.read().decode(errors="replace")) or f"status {done.returncode}")
    return json.loads(lines[-1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_REASON_CHARACTERS] if lines else ""
