"""The tokenizer of a checkpoint as the files that packages hold: tokenizer.json and its companions."""

import json
import shutil
from pathlib import Path
from typing import Any

from teengined.core.errors import SourceError
from teengined_plugins.sources.checked_files import MAX_JSON_BYTES, checked_path, read_json

__all__ = ["copy_tokenizer", "save_tokenizer"]

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy what `source` has, build tokenizer.json where only an older form is there, and return the names.

    Raises:
        SourceError: there is no tokenizer, it cannot be opened, or it needs the checkpoint's own code.
    """
    written = [name for name in _COPIED if (source / name).exists()]
    for name in written:
        path = checked_path(source, name)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
        shutil.copyfile(path, target / name)
    if "tokenizer.json" not in written:
        written += _rebuild(source, target)
    _check_tokenizer(target / "tokenizer.json")
    if _split_chat_template(target):
        written.append("chat_template.jinja")
    return sorted(set(written))


def save_tokenizer(tokenizer: Any, target: Path) -> list[str]:
    """Write a transformers tokenizer as package files and return their names.

    Raises:
        SourceError: it has no tokenizer.json form.
    """
    names = {Path(path).name for path in tokenizer.save_pretrained(str(target)) if Path(path).is_file()}
    if not (target / "tokenizer.json").is_file():
        raise SourceError("the tokenizer cannot be expressed as tokenizer.json")
    return sorted(names)


def _rebuild(source: Path, target: Path) -> list[str]:
    if not any((source / name).exists() for name in _SLOW_TOKENIZERS):
        raise SourceError(
            f"{source.name} has no tokenizer: no tokenizer.json, tokenizer.model or vocabulary is there",
            hint="copy tokenizer.json and tokenizer_config.json from the model's page into the directory",
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # any of its many back ends may fail in its own way
        problem = " ".join(str(error).split())
        raise SourceError(
            f"{source.name}: its tokenizer cannot be turned into tokenizer.json: {problem:.200}"
        ) from error
    return save_tokenizer(tokenizer, target)


def _check_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise SourceError(f"tokenizer.json cannot be loaded: {' '.join(str(error).split()):.200}") from error


def _split_chat_template(directory: Path) -> bool:
    """Move a chat template that sits inside tokenizer_config.json to a file of its own."""
    template_path = directory / "chat_template.jinja"
    if template_path.exists() or not (directory / "tokenizer_config.json").exists():
        return template_path.exists()
    table = read_json(directory, "tokenizer_config.json")
    template: Any = table.pop("chat_template", None)
    if isinstance(template, list):  # several named templates; the one called default is the chat
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        return False
    template_path.write_text(template, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(table, indent=2, ensure_ascii=False), encoding="utf-8")
    return True
