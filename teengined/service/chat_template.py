"""A model's chat template, rendered in a sandbox: templates come with packages and are not trusted."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from teengined.core.errors import RequestError
from teengined.core.request import ChatMessage

__all__ = ["ChatTemplate"]

_MAX_OPERAND = 10_000


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


class ChatTemplate:
    """Compiled once, rendered for each request."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], max_characters: int) -> None:
        """Compile.

        `special_tokens` maps `bos_token` and the like to their text; a rendering longer than `max_characters` is
        refused.

        Raises:
            RequestError: the template is no valid jinja.
        """
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # a prompt, not HTML
            extensions=[_AssistantSpan, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        cast("dict[str, Any]", environment.globals).update(functions)
        self._special_tokens = dict(special_tokens)
        self._max_characters = max_characters
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise _template_error(error) from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """Return the prompt for a conversation, up to where the assistant speaks.

        Raises:
            RequestError: the template refuses these messages, fails, or writes too much.
        """
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special_tokens,
            ):
                pieces.append(piece)
                num_characters += len(piece)
                if num_characters > self._max_characters:
                    raise RequestError(f"the chat template writes more than {self._max_characters} characters")
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _template_error(error) from error
        return "".join(pieces)


def _template_error(error: Exception) -> RequestError:
    return RequestError(
        f"the model's chat template refuses these messages: {error!s:.300}",
        hint="most templates want roles system, user and assistant, the last one user",
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
