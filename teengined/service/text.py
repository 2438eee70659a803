"""A package's tokenizer and chat template. Slow to open (tens of milliseconds), so call it from a thread."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from teengined.core.errors import PackageError, RequestError
from teengined.core.request import ChatMessage
from teengined.service.detokenizer import Detokenizer

__all__ = ["TextCodec"]

# The largest vocabularies take some 35 MB as tokenizer.json.
_MAX_FILE_BYTES = 256 << 20
_NAMED_TEMPLATE = "default"


class TextCodec:
    """Text of one model to token ids and back. Safe to use from several threads."""

    def __init__(self, package_dir: Path, max_characters: int) -> None:
        """Read `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

        Raises:
            PackageError: the tokenizer cannot be read.
        """
        import tokenizers

        self._name = package_dir.name
        self._config = _read_table(package_dir / "tokenizer_config.json")
        self._template_source = _template_of(package_dir, self._config)
        self._max_characters = max_characters
        self._template: Any = None
        path = package_dir / "tokenizer.json"
        try:
            self._tokenizer: Any = cast("Any", tokenizers).Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises plain Exception.
            raise PackageError(
                f"{self._name}: tokenizer.json cannot be read: {error!s:.200}", hint="convert the model again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return the token ids of raw text, with the special tokens that the model expects around it."""
        return self._ids(prompt, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return the token ids of a conversation through the chat template.

        Raises:
            RequestError: the model has no template, or it refuses these messages.
        """
        if self._template is None:
            self._template = self._compile()
        text = self._template.render(messages)
        return self._ids(text, add_special_tokens=False)

    def detokenizer(self) -> Detokenizer:
        """Return a fresh fold for one answer. Special tokens have no text."""
        return Detokenizer(lambda token_ids: cast("str", self._tokenizer.decode(list(token_ids))))

    def _ids(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        # Of the library's calls only those for batches let other threads run: a long prompt would halt every stream.
        encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        return tuple(encoding.ids)

    def _compile(self) -> Any:
        if self._template_source is None:
            raise RequestError(f"{self._name} has no chat template", hint="send a plain prompt instead of messages")
        from teengined.service.chat_template import ChatTemplate

        return ChatTemplate(self._template_source, _special_tokens(self._config), self._max_characters)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise PackageError(f"{path.parent.name}: {path.name} is larger than {_MAX_FILE_BYTES} bytes")
        table: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(f"{path.parent.name}: {path.name} cannot be read: {error!s:.200}") from error
    return cast("dict[str, Any]", table) if isinstance(table, dict) else {}


def _template_of(package_dir: Path, config: dict[str, Any]) -> str | None:
    path = package_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # Several, by name.
        named = [cast("dict[str, Any]", item) for item in cast("list[Any]", template) if isinstance(item, dict)]
        template = next((item.get("template") for item in named if item.get("name") == _NAMED_TEMPLATE), None)
    return template if isinstance(template, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return `bos_token` and the like as text; Hugging Face writes them plainly or as a table with `content`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        text = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found
