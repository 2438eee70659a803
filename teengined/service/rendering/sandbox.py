"""The jinja environment of chat templates. It refuses what reaches out; time and memory are bounded around it."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

__all__ = ["CompiledTemplate", "TooLong"]

# A power or a product of such operands is small; beyond, the answer says what is wrong before memory runs out.
_MAX_OPERAND = 10_000


class TooLong(Exception):
    """A rendering writes more than it may."""


class _AssistantSpan(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's words for training; here it only wraps them."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Also bounds the operators that make much out of little."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse operands beyond `_MAX_OPERAND`."""
        sizes = [item if isinstance(item, (int, float)) else len(item) for item in (left, right)]
        if any(abs(size) > _MAX_OPERAND for size in sizes):
            raise jinja2.exceptions.SecurityError(f"operands of {operator} are limited to {_MAX_OPERAND}")
        return super().call_binop(context, operator, left, right)


class CompiledTemplate:
    """One template, compiled once. Compiling and rendering may raise anything, and may not end by themselves."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile. `special_tokens` maps `bos_token` and the like to their text."""
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # a prompt, not HTML
            extensions=[_AssistantSpan, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        names = cast("dict[str, Any]", environment.globals)
        names["raise_exception"] = _raise_exception
        del names["lipsum"]  # Random text is no part of a prompt.
        self._special_tokens = dict(special_tokens)
        self._template = environment.from_string(source)

    def render(self, variables: Mapping[str, Any], now: datetime, max_characters: int) -> str:
        """Return the text for `variables`; `strftime_now` tells `now`.

        Raises:
            TooLong: it has more than `max_characters`.
        """
        given = {**self._special_tokens, **variables, "strftime_now": _clock_at(now)}
        return _joined(self._template.generate(**given), max_characters)


def _joined(pieces: Iterable[str], max_characters: int) -> str:
    kept: list[str] = []
    num_characters = 0
    for piece in pieces:
        num_characters += len(piece)
        if num_characters > max_characters:
            raise TooLong
        kept.append(piece)
    return "".join(kept)


def _clock_at(now: datetime) -> Callable[[str], str]:
    return lambda layout: now.strftime(layout)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **layout: Any) -> str:
    """Write JSON as published templates expect it: plain Unicode, keys in their order, nothing escaped for HTML.

    `layout` may hold `separators` and `sort_keys`.
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **layout)
