"""Names of models and the directories that hold them: `ORG/NAME` lives in `ORG--NAME`."""

import re

from teengined.core.errors import RequestError

__all__ = ["check_name", "directory_of", "name_in"]

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._]|-(?!-)){0,95}"
_NAME = re.compile(rf"{_PART}(?:/{_PART})?")


def check_name(name: str) -> str:
    """Return `name` when it can name a model.

    Raises:
        RequestError: anything but one or two parts of letters, digits, dot, underscore and single dashes.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{name!r:.120} cannot name a model",
            hint="use letters, digits, '.', '_' and single '-', with at most one '/' (ORG/NAME)",
        )
    return name


def directory_of(name: str) -> str:
    """Return the directory name for a model's name."""
    return check_name(name).replace("/", "--")


def name_in(directory: str) -> str | None:
    """Return the model's name for a directory name; None for one that cannot hold a package."""
    name = directory.replace("--", "/", 1)
    return name if _NAME.fullmatch(name) else None
