"""Measuring processes: one JSON request on standard input, JSON events by line on standard output.

Each device is measured in a process of its own, because binding to cores cannot be undone. Imports no torch.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from teengined.core.errors import DeadlineExceeded, DriverError, ProtocolError, TeengineError, error_class

__all__ = ["Event", "Measuring", "emit", "serve_request"]

_PR_SET_PDEATHSIG = 1
_LAST_WORDS_BYTES = 1000

Event = Mapping[str, Any]


def emit(event: str, **content: Any) -> None:
    """Write one event to whoever started this process."""
    print(json.dumps({"event": event, **content}), flush=True)


def serve_request(answer: Callable[[Event], None]) -> int:
    """Read the request, answer it with events, and return the exit status. An error becomes the last event."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        request = _parse(sys.stdin.readline())
        if request.get("parent", os.getppid()) != os.getppid():
            return 1  # it ended before the kernel was asked to tell
        answer(request)
    except TeengineError as error:
        emit("error", code=error.code, message=error.message, hint=error.hint)
        return error.exit_code
    return 0


def _parse(line: str) -> Event:
    try:
        request: object = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"no line of JSON: {line[:80]!r}") from error
    if not isinstance(request, dict):
        raise ProtocolError(f"no JSON object: {line[:80]!r}")
    return cast("Event", request)


class Measuring:
    """A measuring process seen from the one that started it."""

    def __init__(self, module: str, request: Event, what: str) -> None:
        """Start `python -m module`; `what` is named in errors."""
        self._what = what
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._output: IO[str] = self._process.stdout
        try:
            self._process.stdin.write(json.dumps({**request, "parent": os.getpid()}) + "\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # its last words say why

    def events(self, timeout_seconds: float) -> Iterator[Event]:
        """Yield events up to and with `done`.

        Raises:
            TeengineError: as the process reported.
            DriverError: it ended otherwise.
            DeadlineExceeded: it took longer than the time given.
        """
        late = threading.Event()
        timer = threading.Timer(timeout_seconds, lambda: (late.set(), self._process.kill()))
        timer.start()
        try:
            for line in self._output:
                event = _parse(line)
                if event["event"] == "error":
                    raise error_class(event["code"])(event["message"], hint=event["hint"])
                yield event
                if event["event"] == "done":
                    return
        finally:
            timer.cancel()
        if late.is_set():
            raise DeadlineExceeded(f"{self._what} took longer than {timeout_seconds:g} s")
        raise DriverError(f"{self._what} ended with status {self._process.wait()}: {self._last_words()}")

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._errors.close()

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _LAST_WORDS_BYTES))
        return self._errors.read().decode(errors="replace").strip() or "it said nothing"


@contextmanager
def measuring(requests: Sequence[tuple[str, Event, str]]) -> Generator[list[Measuring]]:
    """Start processes for (module, request, what) and end them all with the context."""
    started: list[Measuring] = []
    try:
        started.extend(Measuring(*request) for request in requests)
        yield started
    finally:
        for process in started:
            process.close()
