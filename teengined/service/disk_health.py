"""Which disks failed while weights were read from them: kept until the daemon ends, since a disk seldom fails once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from teengined.protocol.messages import DiskStatus

__all__ = ["DiskHealth"]


@dataclass(slots=True)
class _Record:
    num_failures: int = 0
    problem: str = ""
    failed_seconds: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class DiskHealth:
    """The directories that packages are read from, and what went wrong there."""

    paths: tuple[Path, ...]
    clock: Callable[[], float] = time.time
    """Seconds since the epoch."""
    _records: dict[Path, _Record] = field(default_factory=dict[Path, _Record])

    def note_failure(self, package_dir: Path, problem: str) -> None:
        """Mark the disk of a package."""
        path = next((path for path in self.paths if package_dir.is_relative_to(path)), package_dir)
        record = self._records.setdefault(path, _Record())
        record.num_failures += 1
        record.problem, record.failed_seconds = problem, self.clock()

    def describe(self) -> tuple[DiskStatus, ...]:
        """Return every disk with what is known of it."""
        return tuple(
            DiskStatus(
                path=str(path),
                num_failures=record.num_failures,
                problem=record.problem,
                failed_unix_seconds=record.failed_seconds,
            )
            for path in dict.fromkeys((*self.paths, *self._records))
            for record in (self._records.get(path, _Record()),)
        )
