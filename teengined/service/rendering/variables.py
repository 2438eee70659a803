"""What a chat template is given: turns, tools and options as plain JSON values. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from teengined.core.errors import RequestError
from teengined.core.request import ChatMessage, ToolCall
from teengined.core.strict_json import STRICT_JSON

__all__ = ["parse_options", "parse_tools", "template_variables"]

# What the field's APIs allow in one request; each is described in some hundred characters.
_MAX_TOOLS = 128
_MAX_TOOLS_CHARACTERS = 256 << 10
# Templates know a handful of switches; documents are the largest thing that is passed this way.
_MAX_OPTIONS = 32
_MAX_OPTIONS_CHARACTERS = 256 << 10
_MAX_NAME_CHARACTERS = 64
_GIVEN_OTHERWISE = {"messages": "messages", "tools": "tools"}


def parse_tools(tools: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Return each tool's JSON object.

    Raises:
        RequestError: too many, too large, no JSON, or no object; it says which one.
    """
    if len(tools) > _MAX_TOOLS:
        raise RequestError(f"at most {_MAX_TOOLS} tools may be given, got {len(tools)}")
    _check_size("tools", tools, _MAX_TOOLS_CHARACTERS)
    parsed = [_parse(f"tools[{index}]", text) for index, text in enumerate(tools)]
    for index, tool in enumerate(parsed):
        if not isinstance(tool, dict):
            raise RequestError(
                f"tools[{index}] is no JSON object",
                hint='a tool is {"type": "function", "function": {"name": ..., "parameters": ...}}',
            )
    return tuple(parsed)


def parse_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return each template option's JSON value.

    Raises:
        RequestError: too many, too large, no JSON, or a name that no option can have; it says which one.
    """
    if len(options) > _MAX_OPTIONS:
        raise RequestError(f"at most {_MAX_OPTIONS} template options may be given, got {len(options)}")
    _check_size("template_options", tuple(options.values()), _MAX_OPTIONS_CHARACTERS)
    for name in options:
        if name in _GIVEN_OTHERWISE:
            raise RequestError(f"template_options may not set {name}", hint=f"send it as {_GIVEN_OTHERWISE[name]}")
        if not name.isidentifier() or name.startswith("_") or len(name) > _MAX_NAME_CHARACTERS:
            raise RequestError(f"{name!r:.80} cannot name a template option", hint="use letters, digits and _")
    return {name: _parse(f"template_options[{name!r}]", text) for name, text in options.items()}


def template_variables(
    messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the variables of one rendering, in the shapes that published templates expect.

    A tool's turn gets the name of the function that its call asked for, because some templates want it.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return {
        "add_generation_prompt": True,
        "documents": None,
        **options,
        "messages": [_turn(message, names) for message in messages],
        "tools": list(tools) or None,
    }


def _turn(message: ChatMessage, names: Mapping[str, str]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
        if name := names.get(message.tool_call_id):
            turn["name"] = name
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = STRICT_JSON.decode(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments  # As the model wrote it, which need not be JSON.
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _check_size(what: str, texts: Sequence[str], limit: int) -> None:
    size = sum(map(len, texts))
    if size > limit:
        raise RequestError(f"{what} may have {limit} characters together, got {size}")


def _parse(where: str, text: str) -> Any:
    try:
        return STRICT_JSON.decode(text)
    except RecursionError as error:
        raise RequestError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"{where} is not valid JSON: {error!s:.200}") from error
