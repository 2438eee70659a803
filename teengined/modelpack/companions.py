"""The small files beside the weights: configuration, generation defaults, tokenizer, chat template."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from teengined.core.errors import SourceError
from teengined.modelpack.layout import CONFIG_FILES
from teengined.modelpack.verify import digest_of

__all__ = ["Companions", "eos_token_ids", "write_companions"]

_TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

Companions = dict[str, str]
"""File name -> digest."""


def write_companions(
    write_tokenizer: Callable[[Path], Iterable[str]], config: Mapping[str, Any], directory: Path
) -> Companions:
    """Write them into `directory`, synced, and return their digests; files that packages do not have are removed.

    Args:
        write_tokenizer: As `Checkpoint.write_tokenizer`.
        config: What config.json says.
        directory: Of the package to be.

    Raises:
        SourceError: the checkpoint has no usable tokenizer.
    """
    written = set(write_tokenizer(directory))
    if "tokenizer.json" not in written:
        raise SourceError("the checkpoint has no tokenizer that can be expressed as tokenizer.json")
    for extra in written - set(CONFIG_FILES):
        (directory / extra).unlink(missing_ok=True)
    _write_json(directory / "config.json", config)
    if not (directory / "generation_config.json").is_file():
        defaults = {key: config[key] for key in _TOKEN_ID_KEYS if config.get(key) is not None}
        _write_json(directory / "generation_config.json", defaults)
    present = [name for name in CONFIG_FILES if (directory / name).is_file()]
    for name in present:
        _sync(directory / name)
    return {name: digest_of((directory / name).read_bytes()) for name in present}


def eos_token_ids(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens that end an answer: what generation_config.json says, or else config.json."""
    generation = json.loads((directory / "generation_config.json").read_bytes())
    for table in (generation, config):
        ids: object = table.get("eos_token_id") if isinstance(table, Mapping) else None  # type: ignore[reportUnknownMemberType]
        if isinstance(ids, int) and not isinstance(ids, bool):
            return (ids,)
        if isinstance(ids, list) and ids:
            return tuple(token for token in cast("list[object]", ids) if isinstance(token, int))
    return ()


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
