"""A package's tokenizer and chat template. Slow to open (tens of milliseconds), so call it from a thread."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from teengined.core.errors import ContextTooLong, PackageError, RequestError
from teengined.core.request import ChatMessage
from teengined.modelpack.layout import MAX_TOKENIZER_BYTES
from teengined.service.chat_template import ChatTemplate
from teengined.service.detokenizer import Detokenizer
from teengined.service.rendering.exchange import RenderBounds

__all__ = ["TextCodec"]

# The largest published ones have some 20 kB.
_MAX_TEMPLATE_BYTES = 1 << 20
_NAMED_TEMPLATE = "default"


class TextCodec:
    """Text of one model to token ids and back. Safe to use from several threads."""

    def __init__(self, package_dir: Path, bounds: RenderBounds) -> None:
        """Read `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, which is held to `bounds`.

        Raises:
            PackageError: one of them cannot be read.
        """
        import tokenizers

        self._name = package_dir.name
        config = _read_table(package_dir / "tokenizer_config.json")
        named = _special_tokens(config)
        self._borders = [named[name] for name in ("bos_token", "eos_token") if name in named]
        """Texts of the tokens that begin a text or, failing that, end one."""
        self.template_source: str | None = _template_of(package_dir, config)
        self._template = _open_template(self.template_source, config, bounds)
        path = package_dir / "tokenizer.json"
        try:
            self._tokenizer: Any = cast("Any", tokenizers).Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises plain Exception.
            raise PackageError(
                f"{self._name}: tokenizer.json cannot be read: {error!s:.200}", hint="convert the model again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens: Mapping[str, int] = _special_ids(self._tokenizer)

    def encode(self, prompt: str, max_tokens: int | None = None) -> tuple[int, ...]:
        """Return the token ids of raw text, with the special tokens that the model expects around it.

        Raises:
            ContextTooLong: there are more than `max_tokens`.
        """
        return self._ids(prompt, max_tokens, add_special_tokens=True)

    def encode_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of a context and of what follows it, divided as evaluation harnesses do.

        The continuation's tokens are those that the whole text has beyond as many as the context has by itself. A
        context without tokens is the one that begins, or else ends, a text.

        Raises:
            RequestError: the continuation has no tokens of its own, or nothing can stand before it.
        """
        whole, alone = (self._encoding(text, add_special_tokens=True) for text in (context + continuation, context))
        start, end = _span_of_text(whole.special_tokens_mask)
        context_start, context_end = _span_of_text(alone.special_tokens_mask)
        # A context without text has only what the tokenizer puts before every text.
        before = tuple(alone.ids[:context_end] if context_start < context_end else whole.ids[:start])
        after = tuple(whole.ids[len(before) : end])
        if not after:
            raise RequestError("the continuation adds no token to the context", hint="give more of it")
        return before or (self._beginning(),), after

    def encode_rendered(self, prompt: str, max_tokens: int | None = None) -> tuple[int, ...]:
        """Return the token ids of what `render_chat` wrote: it holds all the special tokens that the model expects.

        Raises:
            ContextTooLong: there are more than `max_tokens`.
        """
        return self._ids(prompt, max_tokens, add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
        *,
        now: datetime,
    ) -> str:
        """Return a conversation through the chat template. Blocks for some seconds where the template is hostile.

        Raises:
            RequestError: the model has no template, or it refuses these messages.
            QueueFull: the template is kept busy by others.
        """
        if self._template is None:
            raise RequestError(f"{self._name} has no chat template", hint="send a plain prompt instead of messages")
        return self._template.render(messages, tools, options, now=now)

    def detokenizer(self, kept_special_tokens: Collection[str] = ()) -> Detokenizer:
        """Return a fresh fold for one answer. Special tokens have no text, but those that are named."""
        shown = {self.special_tokens[name]: name for name in kept_special_tokens if name in self.special_tokens}
        return Detokenizer(lambda token_ids: cast("str", self._tokenizer.decode(list(token_ids))), shown)

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every token. Slow: tens of milliseconds."""
        return cast("dict[str, int]", self._tokenizer.get_vocab())

    def close(self) -> None:
        """End what runs for it. Safe to call twice."""
        if self._template is not None:
            self._template.close()

    def _ids(self, text: str, max_tokens: int | None, *, add_special_tokens: bool) -> tuple[int, ...]:
        encoding = self._encoding(text, add_special_tokens=add_special_tokens)
        # Making a list of a million numbers would halt every stream.
        if max_tokens is not None and len(encoding) > max_tokens:
            raise ContextTooLong(
                f"{len(encoding)} prompt tokens; {self._name} is loaded with a context of {max_tokens}",
                hint="shorten the prompt, or load it with a larger --context",
            )
        return tuple(encoding.ids)

    def _encoding(self, text: str, *, add_special_tokens: bool) -> Any:
        # Of the library's calls only those for batches let other threads run: a long prompt would halt every stream.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]

    def _beginning(self) -> int:
        for name in self._borders:
            token_id = self._tokenizer.token_to_id(name)
            if token_id is not None:
                return cast("int", token_id)
        raise RequestError(
            "the context is empty, and this model has no token that begins a text", hint="give some context"
        )


def _open_template(source: str | None, config: dict[str, Any], bounds: RenderBounds) -> ChatTemplate | None:
    if source is None:
        return None
    return ChatTemplate(source, _special_tokens(config), bounds)


def _special_ids(tokenizer: Any) -> dict[str, int]:
    """Return the special tokens by their text. Added tokens that are not special have a text like any other."""
    added = cast("dict[int, Any]", tokenizer.get_added_tokens_decoder())
    return {str(token.content): token_id for token_id, token in added.items() if token.special}


def _span_of_text(added: Sequence[int]) -> tuple[int, int]:
    """Return where a text's own tokens begin and end among those that the tokenizer added around them."""
    start = next((index for index, is_added in enumerate(added) if not is_added), len(added))
    end = next((index for index in range(len(added), start, -1) if not added[index - 1]), start)
    return start, end


def _read_table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise PackageError(f"{path.parent.name}: {path.name} is larger than {MAX_TOKENIZER_BYTES} bytes")
        table: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(f"{path.parent.name}: {path.name} cannot be read: {error!s:.200}") from error
    return cast("dict[str, Any]", table) if isinstance(table, dict) else {}


def _template_of(package_dir: Path, config: dict[str, Any]) -> str | None:
    path = package_dir / "chat_template.jinja"
    try:
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise PackageError(f"{package_dir.name}: {path.name} is larger than {_MAX_TEMPLATE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _configured_template(config)
    except (OSError, ValueError) as error:
        raise PackageError(f"{package_dir.name}: {path.name} cannot be read: {error!s:.200}") from error


def _configured_template(config: dict[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # Several, by name.
        named = [cast("dict[str, Any]", item) for item in cast("list[Any]", template) if isinstance(item, dict)]
        template = next((item.get("template") for item in named if item.get("name") == _NAMED_TEMPLATE), None)
    if not isinstance(template, str):
        return None
    if len(template) > _MAX_TEMPLATE_BYTES:
        raise PackageError(f"the chat template has {len(template)} characters; at most {_MAX_TEMPLATE_BYTES} are read")
    return template


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return `bos_token` and the like as text; Hugging Face writes them plainly or as a table with `content`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        text = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found
