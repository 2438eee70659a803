"""What someone may have meant by a name that is not there."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]

# Comparing takes time that grows with the name, and whoever sent one of a megabyte is not helped by it.
_LONGEST_CHARACTERS = 200


def nearest(name: str, known: Iterable[str], *, num_names: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that are most like `name`, best first; none for a name longer than any that was meant."""
    if len(name) > _LONGEST_CHARACTERS:
        return []
    return difflib.get_close_matches(name, list(known), n=num_names, cutoff=cutoff)
