"""Why a reference names no model, in words for whoever typed it. Looks at the disk, and opens nothing."""

import os
from pathlib import Path

from teengined.core.errors import SourceError
from teengined.core.nearest import nearest
from teengined.modelpack.aliases import ALIASES

__all__ = ["WAYS", "looks_like_path", "unknown_reference"]

WAYS = (
    "name a directory with config.json and .safetensors files, a .gguf file, ORG/NAME on the hub, or an alias "
    f"({', '.join(ALIASES)})"
)
_LONGEST_SHOWN = 200
# Of a directory's entries, to find the one that was meant.
_MAX_ENTRIES = 1000


def looks_like_path(reference: str) -> bool:
    """Say whether whoever wrote this means a place on this machine, there or not."""
    return reference.startswith((".", "/", "~")) or reference.endswith(("/", ".gguf")) or reference.count("/") > 1


def unknown_reference(reference: str) -> SourceError:
    """Return the error for a reference that no source knows: what was looked for, where, and what would work."""
    shown = f"{reference!r:.{_LONGEST_SHOWN}}"
    if not reference.strip():
        return SourceError("the model's name is empty", hint=WAYS)
    try:
        path = Path(reference).expanduser().absolute()
        is_file = path.is_file()
        near = nearest(path.name, _names_in(path.parent))
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, an unknown user, a NUL
        return SourceError(f"{shown} is no model, and cannot be a path", hint=WAYS)
    if is_file:
        return SourceError(f"{shown} is a file, but no .gguf file", hint=_of_file(path))
    if not path.parent.is_dir():
        return SourceError(f"{shown}: there is no directory {path.parent!s:.{_LONGEST_SHOWN}}", hint=WAYS)
    meant = f"did you mean {path.parent / near[0]}? " if near else ""
    if looks_like_path(reference):
        return SourceError(f"there is no directory or file {path!s:.{_LONGEST_SHOWN}}", hint=f"{meant}{WAYS}")
    alias = nearest(reference, ALIASES)
    meant = f"did you mean {alias[0]}? " if alias else meant
    return SourceError(
        f"{shown} is no alias, and {path.parent!s:.{_LONGEST_SHOWN}} has no directory or file of that name",
        hint=f"{meant}{WAYS}",
    )


def _of_file(path: Path) -> str:
    if path.suffix in (".json", ".safetensors"):
        return f"name its directory: {path.parent}"
    return WAYS


def _names_in(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry, _ in zip(entries, range(_MAX_ENTRIES), strict=False)]
