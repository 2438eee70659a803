"""Lines from a terminal, with editing and recall by readline."""

from collections.abc import Callable
from pathlib import Path

from teengined.cli.history import load_history, remember

__all__ = ["LineEditor"]


class LineEditor:
    """Reads lines. With a history file, it begins with the entries of earlier chats and keeps each new one at once."""

    def __init__(self, read_line: Callable[[str], str], history: Path | None, say: Callable[[str], None]) -> None:
        """Prepare readline, which is imported here.

        `read_line` is `input` or calls it; `say` tells once where the history cannot be kept.
        """
        import readline  # Its presence is what gives `input` editing.

        self._readline = readline
        self._read_line = read_line
        self._history = history
        self._say = say
        readline.set_auto_history(False)
        for entry in load_history(history) if history else ():
            self._recall(entry)

    def read(self, prompt: str) -> str:
        """Return the next line.

        Raises:
            EOFError: the user is done.
            KeyboardInterrupt: the user gave the line up.
        """
        line = self._read_line(prompt)
        self._recall(line)
        if self._history is not None:
            try:
                remember(self._history, line)
            except OSError as error:
                self._say(f"(the history cannot be kept in {self._history}: {error.strerror})")
                self._history = None
        return line

    def _recall(self, line: str) -> None:
        if line.strip() and "\0" not in line:
            self._readline.add_history(line)
