"""A daemon for one command: private directory, readiness without polling, and nothing left when it is over."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from teengined.cli.leash import start_leashed, stop
from teengined.core.errors import ConfigError, DaemonUnreachable, DeadlineExceeded, InternalError, TeengineError

__all__ = ["private_daemon", "runtime_directory"]

# A socket's path has at most 107 bytes; this leaves room for the daemon's own names below it.
_MAX_BASE_BYTES = 40
_PREFIX = "teengine-private-"
START_SECONDS = 30.0
# Workers are given 5 s for each of: asked to end, SIGTERM, SIGKILL.
STOP_SECONDS = 20.0
_NOTICE_BYTES = 4096
_LOOK_SECONDS = 0.2
_LOG_TAIL_BYTES = 4096


@contextmanager
def runtime_directory() -> Generator[Path]:
    """Make a private directory with a short path; remove it, and those of processes that were killed."""
    base = _base_directory()
    for left in base.glob(f"{_PREFIX}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _base_directory() -> Path:
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108 - a private one is made inside
    for candidate in candidates:
        if candidate and len(os.fsencode(candidate)) <= _MAX_BASE_BYTES and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise InternalError("no directory with a short path can be written to", hint="set XDG_RUNTIME_DIR to one")


def _is_abandoned(directory: Path) -> bool:
    owner = directory.name.removeprefix(_PREFIX).partition("-")[0]
    return owner.isdecimal() and not Path("/proc", owner).exists() and directory.stat().st_uid == os.getuid()


@contextmanager
def private_daemon(configuration: Path, directory: Path, log_file: Path) -> Generator[None]:
    """Run a daemon with `configuration` until the block ends; its runtime directory is below `directory`.

    Raises:
        TeengineError: it ended or did not get ready; the class follows its exit status.
    """
    notices = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, log_file.open("wb") as log:
        channel.bind(str(notices))
        process = start_leashed(
            [sys.executable, "-P", "-m", "teengined.daemon.main", "--config", str(configuration), "--die-with-parent"],
            stdout=log,
            stderr=log,
            environment=_environment(notices),
        )
        try:
            _wait_until_ready(process, channel, log_file, time.monotonic)
            yield
        finally:
            stop(process, STOP_SECONDS)


def _environment(notices: Path) -> dict[str, str]:
    """Return this environment without what would change the private configuration or belongs to our own supervisor."""
    foreign = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TEENGINED_") and k not in foreign}
    return {**kept, "NOTIFY_SOCKET": str(notices)}


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", channel: socket.socket, log_file: Path, clock: Callable[[], float]
) -> None:
    deadline = clock() + START_SECONDS
    channel.settimeout(_LOOK_SECONDS)
    while clock() < deadline:
        try:
            if b"READY=1" in channel.recv(_NOTICE_BYTES).splitlines():
                return
        except TimeoutError:
            if process.poll() is not None:
                raise _ended(process.returncode, log_file) from None
    raise DeadlineExceeded(f"the daemon was not ready within {START_SECONDS:.0f} s", hint=f"see {log_file}")


def _ended(status: int, log_file: Path) -> TeengineError:
    """Return the error that the daemon wrote as its last lines."""
    lines = log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").splitlines()
    told = [line.removeprefix("teengined: ") for line in lines if line.startswith("teengined: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    kind = ConfigError if status == ConfigError.exit_code else DaemonUnreachable
    message = told[-1] if told else f"status {status}"
    return kind(f"the private daemon ended: {message}", hint=hints[-1] if hints else f"see {log_file}")
