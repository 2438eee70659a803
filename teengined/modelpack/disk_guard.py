"""What a disk may do to whoever writes a package: no room, no right, a crash in the middle. Torch-free."""

import contextlib
import errno
import os
from collections.abc import Generator, Mapping
from pathlib import Path

from teengined.core.errors import DiskFull, NotAllowed, PackageError
from teengined.core.model import UnitSpec
from teengined.core.quantities import format_bytes
from teengined.modelpack.layout import UNITS_DIRECTORY
from teengined.modelpack.spread import spread_target
from teengined.modelpack.verify import check_unit_on_disk
from teengined.modelpack.workspace import Workspace

__all__ = ["check_room", "discarding_on_error", "intact", "mapping_disk_errors"]

# Tokenizer, configuration and manifest, beside the units.
_COMPANIONS_BYTES = 64 * 2**20


def check_room(directory: Path, sizes: Mapping[str, int]) -> None:
    """Refuse to begin what would not fit.

    Args:
        directory: Of the package to be; links in the place of its files lead to the disks that they will lie on.
        sizes: Bytes of each file that is still to be written.

    Raises:
        DiskFull: says how much is needed and how much there is.
    """
    needed = {directory: _COMPANIONS_BYTES}
    for name, size in sizes.items():
        place = _place_of(directory / UNITS_DIRECTORY / name)
        needed[place] = needed.get(place, 0) + size
    for place, size in needed.items():
        available = _available_bytes(place)
        if size > available:
            raise _disk_full(place, f"the package needs {format_bytes(size)}, {format_bytes(available)} are free")


def _place_of(file: Path) -> Path:
    """Return the directory whose disk a file will lie on."""
    target = spread_target(file)
    return target.parent if target is not None else file.parent.parent


def intact(workspace: Workspace, done: Mapping[str, tuple[UnitSpec, ...]]) -> dict[str, tuple[UnitSpec, ...]]:
    """Return those files of an earlier run whose bytes are what their digests say: it may have ended in a crash."""
    found: dict[str, tuple[UnitSpec, ...]] = {}
    for name, units in done.items():
        with contextlib.suppress(PackageError):
            for unit in units:
                check_unit_on_disk(workspace.directory, unit)
            found[name] = units
    return found


@contextlib.contextmanager
def mapping_disk_errors(store: Path) -> Generator[None]:
    """Tell the operating system's refusals as ours.

    Raises:
        NotAllowed: the store cannot be written to.
        DiskFull: it filled up.
        PackageError: any other failure of the disk.
    """
    try:
        yield
    except PermissionError as error:
        raise NotAllowed(
            f"{store} cannot be written to", hint="name another place with --store, or ask its owner"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise PackageError(
                f"{store} cannot be written to: {error.strerror}", hint="name another place with --store"
            ) from error
        free = format_bytes(_available_bytes(store))
        raise _disk_full(store, f"the disk filled up while converting; {free} are free now") from error


@contextlib.contextmanager
def discarding_on_error(workspace: Workspace) -> Generator[None]:
    """Remove what was written when it cannot be of use; an interruption (no `Exception`) leaves it to resume from."""
    try:
        yield
    except Exception:
        workspace.discard()
        raise


def _available_bytes(store: Path) -> int:
    status = os.statvfs(store)
    return status.f_bavail * status.f_frsize


def _disk_full(store: Path, what: str) -> DiskFull:
    return DiskFull(f"no room in {store}: {what}", hint="free space there, or name another place with --store")
