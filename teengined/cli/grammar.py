"""`--format` and `/set format`: what form an answer must have, as a user names it."""

import json
from pathlib import Path

from teengined.core.sampling import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind

__all__ = ["grammar_from"]


def grammar_from(word: str) -> Grammar:
    """Return the grammar for `json` (any object) or for a file with a JSON schema.

    Raises:
        ValueError: the file cannot be read, is too large, or is no JSON object; the sentence says which.
    """
    if word == "json":
        return Grammar(kind=GrammarKind.JSON_OBJECT)
    try:
        with Path(word).expanduser().open(encoding="utf-8") as file:
            schema = file.read(MAX_GRAMMAR_CHARACTERS + 1)
    except OSError as error:
        raise ValueError(
            f"format is json or a file with a JSON schema; {word!r} is no such file: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{word}: the schema is not UTF-8") from error
    try:
        if not isinstance(json.loads(schema), dict):
            raise ValueError("it is no object")  # noqa: TRY004, TRY301 - one sentence for whatever is wrong with it
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{word}: a JSON schema is one JSON object of at most {MAX_GRAMMAR_CHARACTERS} characters: {error}"
        ) from error
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=schema)
