"""Which kernels were measured to be fastest, kept for later processes beside the compiled kernels.

A file of JSON lines, named by all that a measurement depends on, so that nothing in it ever needs to be told outdated:

    {"call":["int8",8,[4096,4096],"torch.bfloat16","cpu",4],"kernel":"native"}

Each measurement adds one line, in one write at the file's end, so that processes need no lock between them. A kept
winner is believed where the two latest measurements agree: a machine that was busy once must not decide for ever. The
file is a convenience: what is wrong with it is ignored, and measured instead.
"""

import functools
import hashlib
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import cast

from teengined.native.compiler import is_private, kernels_digest, private_directory
from teengined.native.library import kernel_library
from teengined_plugins.precisions.kernel_choice import MAX_REMEMBERED

__all__ = ["MAX_FILE_BYTES", "KeptChoices", "choices_file", "kept_choices"]

logger = logging.getLogger(__name__)

# Set to any text, every process measures for itself: to compare, and for tests.
_OFF_VARIABLE = "TEENGINE_NO_KEPT_CHOICES"
# About six thousand lines: thirty models, each with a hundred kinds of calls, measured twice. Reading them takes less
# time than one measurement. A file that would grow beyond is begun anew.
MAX_FILE_BYTES = 512 * 2**10
# What a line must be to be written or read. A call is only compared with others, as text.
_LINE = re.compile(rb'^\{"call":(\[[^{}\n]{1,200}\]),"kernel":"([a-z0-9_-]{1,32})"\}\n', re.MULTILINE)
_NUM_AGREEING = 2
_FILE_MODE = 0o600
# A link is not followed, and nothing that would have to be waited for is opened.
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class KeptChoices:
    """The kept winners by kind of call, read when first asked for; for all threads. No method ever fails."""

    def __init__(self, locate: Callable[[], Path | None]) -> None:
        """`locate` says where the file is, once; None: nothing is kept."""
        self._locate = locate
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._latest: dict[str, tuple[str, ...]] | None = None

    def winner(self, key: Hashable) -> str | None:
        """Return what the two latest measurements of this kind of call agree on."""
        call = _call_text(key)
        if call is None:
            return None
        with self._lock:
            latest = self._read().get(call, ())
        return latest[0] if len(latest) == _NUM_AGREEING and len(set(latest)) == 1 else None

    def keep(self, key: Hashable, winner: str) -> None:
        """Add a measurement, for this process and for those that begin later."""
        call = _call_text(key)
        if call is None:
            return
        line = f'{{"call":{call},"kernel":"{winner}"}}\n'.encode()
        with self._lock:
            latest = self._read()
            if self._path is not None and _LINE.fullmatch(line):
                _add(latest, call, winner)
                _append(self._path, line)

    def _read(self) -> dict[str, tuple[str, ...]]:
        """Return the latest winners by call, oldest first; from the file when asked for the first time."""
        if self._latest is None:
            self._latest = {}
            self._path = self._locate()
            for call, winner in _choices(_content(self._path) if self._path else b""):
                _add(self._latest, call, winner)
        return self._latest


@functools.cache
def kept_choices() -> KeptChoices:
    """Return those of this process; touches no file and imports no torch before it is asked."""
    return KeptChoices(choices_file)


def choices_file() -> Path | None:
    """Return where choices are kept that hold for this process; None where that is nowhere.

    What decides how fast a kernel is, beyond its call: the machine and its compiled kernels and whether they are in
    use; torch and the instructions that it takes; and the sources beside this file, which offer the kernels.
    """
    import torch

    if os.environ.get(_OFF_VARIABLE):
        return None
    is_native = kernel_library() is not None
    try:
        digest = hashlib.blake2b(repr((kernels_digest(), is_native, torch.__version__)).encode(), digest_size=16)
        digest.update(torch.backends.cpu.get_cpu_capability().encode())
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        directory = private_directory()
    except OSError as error:
        logger.debug("choices of kernels are not kept: %s", error)
        return None
    return directory / f"choices-{digest.hexdigest()}.jsonl" if directory else None


def _call_text(key: Hashable) -> str | None:
    """Return a kind of call as JSON; None for those that are not kept.

    A key says of an accelerator where it is, not which it is, so that only calls on the CPU are kept.
    """
    import torch

    def plain(part: object) -> object:
        if isinstance(part, tuple):
            return [plain(inner) for inner in cast("tuple[object, ...]", part)]
        if isinstance(part, torch.dtype) or (isinstance(part, torch.device) and part.type == "cpu"):
            return str(part)
        if isinstance(part, str | int):
            return part
        raise TypeError

    try:
        return json.dumps(plain(key), separators=(",", ":"))
    except TypeError:
        return None


def _choices(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield calls and winners of a file, latest last; passes over what is no line of ours."""
    for line in _LINE.finditer(content):
        call, winner = line.groups()
        yield call.decode("utf-8", "replace"), winner.decode()


def _add(latest: dict[str, tuple[str, ...]], call: str, winner: str) -> None:
    earlier = latest.pop(call, ())
    while len(latest) >= MAX_REMEMBERED:
        del latest[next(iter(latest))]
    latest[call] = (*earlier, winner)[-_NUM_AGREEING:]


def _content(path: Path) -> bytes:
    """Return what is kept; nothing where there is no file, or a too large one, or where others may have written it."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _OPEN_FLAGS), "rb") as file:
            is_sound = _is_sound(file.fileno())
            content = file.read(MAX_FILE_BYTES + 1) if is_sound else b""
    except OSError as error:
        logger.debug("no choices of kernels are kept: %s", error)
        return b""
    return content if len(content) <= MAX_FILE_BYTES else b""


def _append(path: Path, line: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OPEN_FLAGS, _FILE_MODE)
        try:
            if _is_sound(descriptor):
                if os.fstat(descriptor).st_size + len(line) > MAX_FILE_BYTES:
                    os.ftruncate(descriptor, 0)
                os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.debug("a choice of a kernel is not kept: %s", error)


def _is_sound(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and is_private(status)
