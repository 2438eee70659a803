"""The temporary directory of a conversion: one writer at a time, a journal to resume from, one rename at the end.

store/.converting-NAME/        becomes store/NAME when complete
store/.converting-NAME.lock    held with flock by the living converter, so that a dead one's directory is known
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from teengined.core.errors import Conflict
from teengined.core.model import UnitSpec
from teengined.core.records import RecordError, from_mapping, to_mapping
from teengined.modelpack.layout import UNITS_DIRECTORY
from teengined.modelpack.naming import directory_of
from teengined.modelpack.spread import remove_tree

__all__ = ["Workspace", "is_abandoned", "lock_path", "locked", "open_workspace", "temporary_directories"]

_PREFIX = ".converting-"
_RETIRED_PREFIX = ".retired-"
_JOURNAL = "journal.jsonl"
# A journal line lists the units of one layer; see MAX_MANIFEST_BYTES in manifest.py for the sizes.
_MAX_JOURNAL_BYTES = 256 * 2**20
_RENAME_EXCHANGE = 2


class Workspace:
    """A conversion's directory, while its lock is held."""

    def __init__(self, store: Path, name: str) -> None:
        """Name the paths; `open_workspace` makes them."""
        self._store = store
        self._final = store / directory_of(name)
        self.directory = store / f"{_PREFIX}{directory_of(name)}"

    def completed(self, fingerprint: str) -> dict[str, tuple[UnitSpec, ...]]:
        """Return the files that an interrupted run of the same conversion finished, with their units.

        A directory of another conversion (or none that can be told) is emptied.
        """
        lines = self._journal_lines()
        if not fingerprint or not lines or lines[0] != {"fingerprint": fingerprint}:
            self.discard()
            (self.directory / UNITS_DIRECTORY).mkdir(parents=True)
            self._append({"fingerprint": fingerprint})
            return {}
        done: dict[str, tuple[UnitSpec, ...]] = {}
        for line in lines[1:]:
            with contextlib.suppress(RecordError, KeyError, TypeError, OSError):
                units = tuple(from_mapping(UnitSpec, unit) for unit in line["units"])
                end = max(unit.offset_bytes + unit.size_bytes for unit in units)
                if (self.directory / UNITS_DIRECTORY / line["file"]).stat().st_size >= end:
                    done[line["file"]] = units
        return done

    def record(self, file_name: str, units: Sequence[UnitSpec]) -> None:
        """Note durably that a file is complete. Call it after the file was synced."""
        self._append({"file": file_name, "units": to_mapping(list(units))})

    def publish(self) -> None:
        """Put the finished directory in the place of the package, in one step where the file system can."""
        (self.directory / _JOURNAL).unlink()
        for path in (self.directory / UNITS_DIRECTORY, self.directory):
            _sync_directory(path)
        if not self._final.exists():
            self.directory.rename(self._final)
        elif _exchange(self.directory, self._final):
            remove_tree(self.directory)
        else:
            self._replace_in_two_steps()
        _sync_directory(self._store)

    def discard(self) -> None:
        """Remove everything this conversion wrote."""
        with contextlib.suppress(OSError):
            remove_tree(self.directory)

    def _replace_in_two_steps(self) -> None:
        retired = self._store / f"{_RETIRED_PREFIX}{self._final.name}"
        with contextlib.suppress(OSError):
            remove_tree(retired)
        self._final.rename(retired)
        try:
            self.directory.rename(self._final)
        except OSError:
            retired.rename(self._final)
            raise
        remove_tree(retired)

    def _journal_lines(self) -> list[dict[str, Any]]:
        path = self.directory / _JOURNAL
        try:
            if path.stat().st_size > _MAX_JOURNAL_BYTES:
                return []
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return []
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # the last line of a run that was killed while writing it
                break
        return lines

    def _append(self, line: object) -> None:
        with (self.directory / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def open_workspace(store: Path, name: str) -> Generator[Workspace]:
    """Hold the right to write the package `name` in `store`.

    Raises:
        Conflict: another process is converting to that name.
    """
    workspace = Workspace(store, name)
    store.mkdir(parents=True, exist_ok=True)
    with locked(lock_path(workspace.directory)) as held:
        if not held:
            raise Conflict(
                f"another conversion to {name} is running",
                hint="wait for it, or give this one another name with --name",
            )
        _recover_retired(store, directory_of(name))
        yield workspace


@contextlib.contextmanager
def locked(path: Path) -> Generator[bool]:
    """Try to hold the lock file at `path`; yields whether it is held. The file is gone afterwards."""
    fd = _acquire(path)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)


def temporary_directories(store: Path) -> list[Path]:
    """Return the directories of conversions in `store`, running or dead."""
    return sorted(path for path in store.glob(f"{_PREFIX}*") if path.is_dir() and not path.is_symlink())


def is_abandoned(directory: Path) -> bool:
    """Say whether no living converter owns `directory`."""
    with locked(lock_path(directory)) as held:
        return held


def lock_path(directory: Path) -> Path:
    """Return the lock file of a conversion's directory."""
    return directory.with_name(f"{directory.name}.lock")


def _acquire(path: Path) -> int | None:
    """Return a descriptor that holds the lock. A lock file that its last owner unlinked meanwhile does not count."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass
        os.close(fd)


def _recover_retired(store: Path, directory: str) -> None:
    """Finish a replacement that a crash cut between its two steps."""
    retired, final = store / f"{_RETIRED_PREFIX}{directory}", store / directory
    if retired.is_dir() and not final.exists():
        retired.rename(final)


def _exchange(one: Path, other: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_cwd = -100
    if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
