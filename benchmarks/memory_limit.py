"""Runs a program inside a memory limit that the kernel enforces, so that neither it nor the page cache can cheat.

A control group of its own (`teengine-…`, version 1 or 2) is made for the run and removed after it. Where that is not
permitted the program runs without a limit, which is said once on standard error and in the figures.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from teengined.core.errors import CapacityError, NotAllowed

__all__ = ["MemoryGroup", "run_limited"]

_MOUNTS = Path("/sys/fs/cgroup")
_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE_SECONDS = 0.02
# Enter the group, then become the program: everything it ever allocates is counted.
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@dataclass(frozen=True, slots=True)
class _Files:
    """Names of the same four things in the two versions of control groups."""

    limit: str
    peak: str
    events: str
    swap_limit: str


_VERSION_1 = _Files(
    "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "memory.memsw.limit_in_bytes"
)
_VERSION_2 = _Files("memory.max", "memory.peak", "memory.events", "memory.swap.max")


class MemoryGroup:
    """A control group with a limit. Use as a context; programs in it are killed at its end."""

    def __init__(self, limit_bytes: int, *, mounts: Path = _MOUNTS) -> None:
        """Choose the place; nothing is made before the context is entered."""
        self._limit_bytes = limit_bytes
        self._parent, self._files = _find_parent(mounts)
        self._path = self._parent / f"teengine-{os.getpid()}-{time.monotonic_ns()}"

    def __enter__(self) -> Self:
        """Make the group.

        Raises:
            NotAllowed: this process may not make memory groups here.
        """
        try:
            if self._files is _VERSION_2:
                (self._parent / "cgroup.subtree_control").write_text("+memory")
            self._path.mkdir()
            (self._path / self._files.limit).write_text(str(self._limit_bytes))
        except OSError as error:
            self._remove()
            raise NotAllowed(
                f"cannot make a memory group under {self._parent}: {error.strerror}",
                hint="run as root, or where a group is delegated to you (`systemd-run --user --scope -p Delegate=yes`)",
            ) from error
        self._forbid_swap()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what is left in the group and remove it."""
        self._remove()

    def command(self, command: Sequence[str]) -> list[str]:
        """Return `command` so that it runs in the group from its first instruction."""
        return ["/bin/sh", "-c", _ENTER, str(self._path), *command]

    @property
    def peak_bytes(self) -> int | None:
        """Return the most that the group held, page cache included; None where the kernel does not tell."""
        try:
            return int((self._path / self._files.peak).read_text())
        except OSError:
            return None

    @property
    def num_oom_kills(self) -> int:
        """Return how many programs of the group were killed for memory."""
        for line in (self._path / self._files.events).read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def _forbid_swap(self) -> None:
        limit = "0" if self._files is _VERSION_2 else str(self._limit_bytes)
        try:
            (self._path / self._files.swap_limit).write_text(limit)
        except OSError:
            return  # kernels without swap accounting have no such file

    def _remove(self) -> None:
        for _ in range(_REMOVE_ATTEMPTS):
            try:
                self._path.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                self._kill_members()
                time.sleep(_REMOVE_PAUSE_SECONDS)  # the kernel takes a moment to bury them
        print(f"memory group {self._path} could not be removed", file=sys.stderr)

    def _kill_members(self) -> None:
        for line in (self._path / "cgroup.procs").read_text().split():
            try:
                os.kill(int(line), signal.SIGKILL)
            except ProcessLookupError:
                continue


def run_limited(command: Sequence[str], limit_bytes: int) -> Mapping[str, Any]:
    """Run `command`, which prints one JSON object last, and return that object with two keys more.

    `group_peak_bytes` is the most memory that the program and its page cache took, None where there was no limit;
    `limit_bytes` the limit, None likewise.

    Raises:
        CapacityError: the program was killed at the limit, or failed.
    """
    try:
        with MemoryGroup(limit_bytes) as group:
            figures = _run(group.command(command), group)
            return {**figures, "group_peak_bytes": group.peak_bytes, "limit_bytes": limit_bytes}
    except NotAllowed as refusal:
        print(f"no memory limit: {refusal.message} ({refusal.hint})", file=sys.stderr)
        return {**_run(command, None), "group_peak_bytes": None, "limit_bytes": None}


def _run(command: Sequence[str], group: MemoryGroup | None) -> Mapping[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if group is not None and group.num_oom_kills:
        raise CapacityError(f"{command[-1]}: killed at the memory limit", hint="raise the limit")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise CapacityError(f"{' '.join(command[-4:])} ended with status {done.returncode}")
    return json.loads(lines[-1])


def _find_parent(mounts: Path) -> tuple[Path, _Files]:
    """Return where a memory group can be made: under this process's own, or at the top where that is out of sight."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = mounts / "memory" / path.lstrip("/")
            return (own if own.is_dir() else mounts / "memory"), _VERSION_1
    # Version 2 allows no group below one that has processes in it, so the group becomes a sibling.
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = mounts / line.removeprefix("0::").strip().lstrip("/")
            return (own.parent if own != mounts and own.is_dir() else mounts), _VERSION_2
    return mounts, _VERSION_2
