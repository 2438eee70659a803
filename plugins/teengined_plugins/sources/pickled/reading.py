"""Has `.pt` files read by a process that may die, and reads the ranges of their tensors itself.

The process gets descriptors, no names; what it tells is checked again. Files are read in batches, so that a checkpoint
of thousands of files starts a process for every few dozen of them.
"""

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teengined.core.errors import SourceError
from teengined_plugins.sources.pickled.outcome import ReadingBounds, Wanted, understood
from teengined_plugins.sources.pickled.values import RefusedFile

__all__ = ["FileIdentity", "OpenedFile", "identity_of", "read_files"]

# -P: the working directory may be the checkpoint's, and no module is looked for there.
_PROGRAM = (sys.executable, "-P", "-m", "teengined_plugins.sources.pickled.process")
_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
# Descriptors at once, far below the usual limit of 1024.
_MAX_BATCH = 64
# The process starts, and ends by its own clock before ours.
_GRACE_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20

FileIdentity = tuple[str, int, int, int]
"""Name, size, time of change, inode: another content has another identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """A file that was read: what it holds, and how to tell that it is still the same."""

    path: Path
    identity: FileIdentity
    values: Mapping[str, Any]
    """By the path that was wanted, joined by `/`; tensors are `TensorRange`."""


def read_files(paths: Sequence[Path], wanted: Wanted, bounds: ReadingBounds | None = None) -> Iterator[OpenedFile]:
    """Yield the wanted values of each file, in order.

    Raises:
        SourceError: a file cannot be opened, is damaged, holds what is not read, or ended the process that read it.
    """
    bounds = bounds or ReadingBounds()
    for start in range(0, len(paths), _MAX_BATCH):
        with contextlib.ExitStack() as stack:
            batch = paths[start : start + _MAX_BATCH]
            fds = [_open(path, stack) for path in batch]
            question = {"bounds": asdict(bounds), "wanted": [list(path) for path in wanted], "files": fds}
            process = _start(question, fds, stack)
            for path, fd in zip(batch, fds, strict=True):
                yield _opened(path, fd, _receive(path, process, bounds))


def identity_of(path: Path, fd: int) -> FileIdentity:
    """Return the identity of an open file."""
    status = os.fstat(fd)
    return (path.name, status.st_size, status.st_mtime_ns, status.st_ino)


def _open(path: Path, stack: contextlib.ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{path.name} cannot be opened: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _start(question: dict[str, Any], fds: Sequence[int], stack: contextlib.ExitStack) -> "subprocess.Popen[bytes]":
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    process = subprocess.Popen(
        _PROGRAM,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(fds),
        env={**environment, "LC_ALL": "C.UTF-8"},
    )
    stack.callback(_put_away, process)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # It ended at once; the missing answer tells so.
        process.stdin.write(json.dumps(question).encode("ascii"))
        process.stdin.close()
    return process


def _put_away(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            if stream is not None:
                stream.close()


def _receive(path: Path, process: "subprocess.Popen[bytes]", bounds: ReadingBounds) -> dict[str, Any]:
    """Return the next frame.

    Raises:
        SourceError: the process ended, took too long, or said more than it may.
    """
    assert process.stdout is not None
    receive = _receiver(process.stdout.fileno(), time.monotonic() + bounds.wall_seconds + _GRACE_SECONDS)
    head = receive(4)
    size = struct.unpack("<I", head)[0] if len(head) == 4 else bounds.max_reply_bytes + 1
    content = receive(size) if size <= bounds.max_reply_bytes else b""
    if len(content) != size:
        raise SourceError(
            f"{path.name} could not be read within {bounds.cpu_seconds:.0f} s of processor time and "
            f"{bounds.memory_bytes >> 20} MiB: the process that read it has ended",
            hint="the file is damaged, or made to be expensive to read; use the model's safetensors files",
        )
    reply: dict[str, Any] = json.loads(content)
    return reply


def _receiver(fd: int, deadline_seconds: float) -> Callable[[int], bytes]:
    look = select.poll()
    look.register(fd, select.POLLIN | select.POLLHUP)

    def receive(count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            left_seconds = deadline_seconds - time.monotonic()
            if left_seconds <= 0 or not look.poll(left_seconds * 1000):
                break
            if not (piece := os.read(fd, min(count - len(content), _CHUNK_BYTES))):
                break
            content += piece
        return bytes(content)

    return receive


def _opened(path: Path, fd: int, reply: dict[str, Any]) -> OpenedFile:
    identity = identity_of(path, fd)
    problem = reply.get("problem", "")
    values: dict[str, Any] = {}
    try:
        values = {name: understood(value, identity[1]) for name, value in reply.get("values", {}).items()}
    except RefusedFile as error:
        problem = str(error)
    if problem:
        raise SourceError(f"{path.name} {problem}", hint="fetch the file again, or use the model's safetensors files")
    return OpenedFile(path=path, identity=identity, values=values)
