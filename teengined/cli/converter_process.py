"""The converter as a child process. It needs torch, which this command never loads; they talk in JSON lines."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

from teengined.cli.leash import start_leashed, stop
from teengined.cli.progress import Progress, Step
from teengined.core.errors import InternalError, error_class

__all__ = ["run_modelpack"]

# The converter removes its temporary files when told to end; a slow disk may take a while over large ones.
_PATIENCE_SECONDS = 20.0
_MAX_LINE_BYTES = 1 << 20
_TAIL_BYTES = 4096


def run_modelpack(arguments: Sequence[str], subject: str, progress: Progress) -> dict[str, Any]:
    """Run `python -m teengined.modelpack ARGUMENTS`, show its progress about `subject`, return its last event.

    Raises:
        TeengineError: the class that the converter's error names; `InternalError` where it ended without one.
    """
    with tempfile.TemporaryFile() as noise:
        command = [sys.executable, "-P", "-m", "teengined.modelpack", *arguments]
        process = start_leashed(command, stdout=subprocess.PIPE, stderr=noise)
        try:
            last = _follow(cast("IO[bytes]", process.stdout), subject, progress)
            status = process.wait(_PATIENCE_SECONDS)
        finally:
            progress.close()
            stop(process, _PATIENCE_SECONDS)
            if process.stdout:
                process.stdout.close()
        return _outcome(last, status, noise)


def _follow(stdout: IO[bytes], subject: str, progress: Progress) -> dict[str, Any]:
    """Show progress events; return the first that is something else, or an empty one at the end of the stream."""
    for event in _events(stdout):
        if event.get("event") != "progress":
            return event
        progress.show(
            Step(
                label=f"{event['phase']} {subject}".strip(),
                done=event["done"],
                total=event["total"],
                bytes_per_second=event.get("bytes_per_second"),
                eta_seconds=event.get("eta_seconds"),
            )
        )
    return {}


def _events(stdout: IO[bytes]) -> Iterator[dict[str, Any]]:
    while line := stdout.readline(_MAX_LINE_BYTES):
        try:
            event: object = json.loads(line)
        except ValueError:
            continue  # A library printed something; the exit status tells whether it mattered.
        if isinstance(event, dict):
            yield cast("dict[str, Any]", event)


def _outcome(last: dict[str, Any], status: int, noise: IO[bytes]) -> dict[str, Any]:
    if last.get("event") == "done":
        return last
    if last.get("event") == "error":
        raise error_class(str(last.get("code")))(str(last.get("message")), hint=str(last.get("hint") or ""))
    ending = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    tail = _last_line(noise)
    raise InternalError(
        f"the converter {ending}" + (f": {tail}" if tail else ""),
        hint="if memory was short, `dmesg | tail` tells; otherwise run it again and report this line",
    )


def _last_line(noise: IO[bytes]) -> str:
    size_bytes = noise.seek(0, 2)
    noise.seek(max(0, size_bytes - _TAIL_BYTES))
    lines = noise.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
