"""Unit files on several disks: reads that are in flight together then come from all of them.

    store/NAME/units/layer-00001.safetensors  ->  DISK/NAME-5f0c…/layer-00001.safetensors

The package holds a link where a file lies on another disk. A link could lead anywhere, and packages are handed around,
so only those count that lead to a regular file two levels below a directory with our mark, which no package can set.
"""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teengined.core.errors import NotAllowed
from teengined.modelpack.layout import UNITS_DIRECTORY

__all__ = ["Disk", "assign_files", "file_status", "lay_out", "remove_tree", "spread_target"]

MARK = ".teengine-disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A directory for unit files, and how fast its disk was measured to read."""

    path: Path
    bytes_per_second: float


def assign_files(sizes: Sequence[int], rates: Sequence[float]) -> tuple[int, ...]:
    """Return the disk of each file, in order: the one that would be done first if all were read so far. Pure.

    Files in order of execution alternate between the disks, and each disk's bytes follow its rate.
    """
    loads = [0.0] * len(rates)
    chosen: list[int] = []
    for size in sizes:
        disk = min(range(len(rates)), key=lambda index: (loads[index] + size / rates[index], index))
        loads[disk] += size / rates[disk]
        chosen.append(disk)
    return tuple(chosen)


def lay_out(directory: Path, sizes: Mapping[str, int], disks: Sequence[Disk]) -> None:
    """Decide where each file of a package will lie, and put links in place of those that go to another disk.

    The first of `disks` is the package's own. Files and links that are there stay, so that a resumed conversion finds
    what it wrote.

    Raises:
        NotAllowed: another disk's directory cannot be written to.
    """
    if len(disks) < 2:
        return
    name = f"{directory.name.lstrip('.').removeprefix('converting-')}-{secrets.token_hex(8)}"
    places = assign_files(list(sizes.values()), [disk.bytes_per_second for disk in disks])
    for file, place in zip(sizes, places, strict=True):
        link = directory / UNITS_DIRECTORY / file
        if place == 0 or link.is_symlink() or link.exists():
            continue
        target = disks[place].path / name
        try:
            target.mkdir(parents=True, exist_ok=True)
            (disks[place].path / MARK).touch()
        except OSError as error:
            raise NotAllowed(
                f"{disks[place].path} cannot be written to: {error.strerror}", hint="mend or remove it in `store.paths`"
            ) from error
        link.symlink_to(target / file)


def spread_target(link: Path) -> Path | None:
    """Return the file on another disk that a link stands for; None for any other link."""
    try:
        target = link.readlink()
    except OSError:
        return None
    sound = target.is_absolute() and target == Path(os.path.normpath(target)) and target.name == link.name
    return target if sound and (target.parent.parent / MARK).is_file() and not target.is_symlink() else None


def file_status(path: Path) -> os.stat_result | None:
    """Return the status of a unit file, here or on another disk; None where it is no file that packages may have.

    Raises:
        OSError: it cannot be looked at.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) and (target := spread_target(path)) is not None:
        status = target.lstat()
    return status if stat.S_ISREG(status.st_mode) else None


def remove_tree(directory: Path) -> None:
    """Delete a package's directory and what it has on other disks.

    Raises:
        OSError: something of the directory itself cannot be removed.
    """
    for link in sorted((directory / UNITS_DIRECTORY).glob("*")):
        target = spread_target(link) if link.is_symlink() else None
        if target is not None:
            with contextlib.suppress(OSError):  # a disk that is gone must not keep the package from going
                target.unlink(missing_ok=True)
                target.parent.rmdir()
    shutil.rmtree(directory)
