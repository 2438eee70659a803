"""A failure as the user sees it: `error:` and `hint:` on standard error, and an exit code for scripts."""

import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import click

from teengined.cli.prose import printable
from teengined.core.errors import DiskFull, InternalError, TeengineError

__all__ = ["BROKEN_PIPE", "INTERRUPTED", "lines_of", "report", "say_error"]

INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE
_USAGE = 2


def report(error: BaseException, *, debug: bool, words: Sequence[str] = (), stream: TextIO | None = None) -> int:
    """Tell the user about `error` and return the exit code. `words` are the arguments, for the hint to run again."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, BrokenPipeError):
        _silence_standard_output()
        return BROKEN_PIPE
    if isinstance(error, (KeyboardInterrupt, EOFError, click.Abort)):
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=stream or sys.stderr)
        return _USAGE
    if debug:
        traceback.print_exception(error, file=stream or sys.stderr)
    message, hint, code = lines_of(error, words)
    say_error(message, hint, stream or sys.stderr)
    return code


def lines_of(error: BaseException, words: Sequence[str] = ()) -> tuple[str, str, int]:
    """Return what to say, the mending command and the exit code."""
    if isinstance(error, TeengineError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "teengine"
        return error.format_message(), f"{path} --help", _USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), "", error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or write elsewhere"
        return f"the output cannot be written: {error.strerror}", hint, DiskFull.exit_code
    again = shlex.join(["teengine", "--debug", *(word for word in words if word != "--debug")])
    return f"internal error: {type(error).__name__}: {error}", again, InternalError.exit_code


def say_error(message: str, hint: str, stream: TextIO) -> None:
    """Write the two lines. A break inside a message would look like a second message, and names in it are anyone's."""
    stream.write(f"error: {printable(' '.join(message.split()))}\n")
    if hint:
        stream.write(f"hint: {printable(' '.join(hint.split()))}\n")
    stream.flush()


def _silence_standard_output() -> None:
    """Point standard output at nothing, or the interpreter complains about the pipe once more when it ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.close(nothing)
