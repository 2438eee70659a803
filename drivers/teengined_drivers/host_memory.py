"""How much memory this process may really use: the least of the machine's and of its control groups' limits."""

from pathlib import Path

import psutil

__all__ = ["available_memory_bytes", "memory_limit_bytes"]


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process can ever use.

    `root` is where `proc` and `sys` are found. Limits of control groups hold for a group and all above it; both
    hierarchies are read, since a host may mount both.
    """
    return min([psutil.virtual_memory().total, *_group_values(root, "memory.max", "memory.limit_in_bytes")])


def available_memory_bytes() -> int:
    """Return the bytes that could be allocated now without swapping."""
    limits = _group_values(Path("/"), "memory.max", "memory.limit_in_bytes")
    used = _group_values(Path("/"), "memory.current", "memory.usage_in_bytes")
    available: int = psutil.virtual_memory().available
    if limits and used:
        # The page cache counts as used in a group and is reclaimed on demand, so the innermost group is a lower bound.
        available = min(available, max(0, min(limits) - used[0]))
    return available


def _group_values(root: Path, file_v2: str, file_v1: str) -> list[int]:
    """Return the file's value in this process's memory groups and their parents, innermost first."""
    values: list[int] = []
    for directory, top, file in _groups(root, file_v2, file_v1):
        for group in (directory, *directory.parents):
            value = _read_number(group / file)
            if value is not None:
                values.append(value)
            if group == top:
                break
    return values


def _groups(root: Path, file_v2: str, file_v1: str) -> list[tuple[Path, Path, str]]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mounts = root / "sys/fs/cgroup"
    groups: list[tuple[Path, Path, str]] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if number == "0" and not controllers:
            groups.append((mounts / relative, mounts, file_v2))
        elif "memory" in controllers.split(","):
            groups.append((mounts / "memory" / relative, mounts / "memory", file_v1))
    return groups


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None  # a container shows its own groups only, so a parent's file may be out of sight
    return int(text) if text.isdigit() else None
