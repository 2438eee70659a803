"""Processes that never outlive the one that needs them.

`prctl(PR_SET_PDEATHSIG)` makes the kernel send a signal when the parent dies, however it dies. It says nothing about a
parent that died before the call, so each side compares the parent's process id before and after.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from types import FrameType
from typing import IO

__all__ = ["ending_in_order", "leash_to_parent", "start_leashed", "stop"]

_PR_SET_PDEATHSIG = 1
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIBC = ctypes.CDLL(None, use_errno=True)


def leash_to_parent() -> None:
    """Ask for SIGTERM when the parent of this process dies; ends the process if that has happened already."""
    parent = os.getppid()
    _leash(parent)


def _leash(parent: int) -> None:
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def start_leashed(
    arguments: Sequence[str],
    *,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a program in a process group of its own that gets SIGTERM when this process ends in any way.

    A group of its own, because Ctrl-C on a terminal goes to a whole group: this process decides who ends when.
    """
    parent = os.getpid()
    return subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=None if environment is None else dict(environment),
        process_group=0,
        # Runs between fork and exec: system calls only, so that no lock held elsewhere can bite.
        preexec_fn=lambda: _leash(parent),
    )


def stop(process: "subprocess.Popen[bytes]", patience_seconds: float) -> int:
    """End a process with SIGTERM, then SIGKILL after `patience_seconds`; return its exit status. Safe to call twice."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


@contextlib.contextmanager
def ending_in_order() -> Generator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an ordinary unwinding, so that every `finally` runs, once.

    The first one raises `KeyboardInterrupt` or `SystemExit(128 + n)`; later ones are ignored while things are put away.
    """

    def unwind(number: int, _frame: FrameType | None) -> None:
        for each in _ENDINGS:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.signal(number, unwind) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
