"""Files of a checkpoint directory, opened only where they really lie: no `..`, no link out of the tree, bounded."""

import hashlib
import json
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, cast

from teengined.core.errors import SourceError

__all__ = ["checked_path", "existing_directory", "fingerprint_of", "read_json"]

# config.json and a shard index of the largest known checkpoints stay under 10 MB; a tokenizer may reach 40 MB.
MAX_JSON_BYTES = 256 * 2**20


def existing_directory(reference: str) -> Path | None:
    """Return the directory that a reference names; None where it names none."""
    try:
        directory = Path(reference).expanduser()
        return directory if directory.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name that no directory can have, an unknown user, a NUL
        return None


def fingerprint_of(identities: Iterable[object]) -> str:
    """Return a digest over the identities of a checkpoint's files, in whatever order they come."""
    return hashlib.blake2b(repr(sorted(map(repr, identities))).encode(), digest_size=16).hexdigest()


def checked_path(directory: Path, name: str) -> Path:
    """Return the path of the regular file `name` in `directory`, with links resolved.

    A link may lead inside the directory, or from a hub cache's snapshot into the `blobs` beside it, where the hub's own
    client puts every file.

    Raises:
        SourceError: the name or what it leads to is outside, missing, or no regular file.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise SourceError(f"file name {name!r:.120} points out of the checkpoint's directory")
    try:
        root = directory.resolve(strict=True)
        path = (directory / name).resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{name:.120} is missing from {directory.name}") from error
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(path.is_relative_to(place) for place in allowed):
        raise SourceError(
            f"{name:.120} is a link out of the checkpoint's directory",
            hint="copy the file it leads to in its place (`cp -L`)",
        )
    if not stat.S_ISREG(mode):
        raise SourceError(f"{name:.120} is not a regular file")
    return path


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in the file `name`.

    Raises:
        SourceError: see `checked_path`; or it is too large or no JSON object.
    """
    path = checked_path(directory, name)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
        table: object = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name} is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise SourceError(f"{name} is not a JSON object")
    return cast("dict[str, Any]", table)
