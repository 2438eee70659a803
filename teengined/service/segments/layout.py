"""White space between the markers of a segment."""

import re

__all__ = ["follows"]

_FEW_SPACES = re.compile(r"[ \t\r\n]{0,32}")


def follows(word: str, text: str, start: int, *, is_last: bool) -> int | None:
    """Say whether `word` comes next in `text`, after a little white space.

    Returns the position after it; `start` where something else comes; None where more text has to tell.
    """
    spaces = _FEW_SPACES.match(text, start)
    begin = spaces.end() if spaces else start
    found = text[begin : begin + len(word)]
    if found == word:
        return begin + len(word)
    may_come = word.startswith(found) and begin + len(found) == len(text)
    return None if may_come and not is_last else start
