"""What the user typed in earlier chats, in a file that only they can read."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["MAX_ENTRIES", "history_file", "load_history", "remember"]

MAX_ENTRIES = 1000
# A pasted text is not something to recall by the arrow keys.
_MAX_ENTRY_CHARACTERS = 4096
# Each entry as JSON: at most six characters for one.
_MAX_FILE_BYTES = MAX_ENTRIES * (6 * _MAX_ENTRY_CHARACTERS + 3)


def history_file(environment: Mapping[str, str], home: Path) -> Path:
    """Return where the history is kept, by the conventions of freedesktop.org."""
    state = environment.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else home / ".local" / "state"
    return base / "teengine" / "history"


def load_history(path: Path) -> list[str]:
    """Return the entries, oldest first; none where there is no history, or where another program wrote the file."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        entries: list[object] = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in entries if isinstance(entry, str)][-MAX_ENTRIES:]


def remember(path: Path, entry: str) -> None:
    """Add an entry, as the only one that is newer than those of other chats; drop the oldest beyond `MAX_ENTRIES`.

    Raises:
        OSError: the file cannot be written.
    """
    if not entry.strip() or len(entry) > _MAX_ENTRY_CHARACTERS:
        return
    entries = load_history(path)
    if entries[-1:] != [entry]:
        _write(path, [*entries, entry][-MAX_ENTRIES:])


def _write(path: Path, entries: Sequence[str]) -> None:
    import tempfile  # Only chats need it, and it brings much along.

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The temporary file has mode 0600 from the start, and takes the place of whatever was there.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(entry)}\n" for entry in entries)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
