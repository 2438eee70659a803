"""Which JSON is a call: an object with a name and arguments."""

from dataclasses import dataclass

from teengined.service.segments.json_text import object_members, string_of

__all__ = ["FoundCall", "call_in", "call_named"]

_NO_ARGUMENTS = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCall:
    """A whole call."""

    name: str
    arguments: str
    """A JSON object, as the model wrote it."""


def call_in(text: str, *, needs_arguments: bool = False) -> FoundCall | None:
    """Return the call that an object with `name` and `arguments` (or `parameters`) is; None where it is none."""
    members = object_members(text)
    if members is None or "name" not in members:
        return None
    name = string_of(members["name"])
    arguments = members.get("arguments", members.get("parameters"))
    if not name or (arguments is None and needs_arguments):
        return None
    return call_named(name, _NO_ARGUMENTS if arguments is None else arguments)


def call_named(name: str, arguments: str) -> FoundCall | None:
    """Return a call whose name is known. Arguments are an object, or a string that holds one, as some models write."""
    inner = string_of(arguments) if arguments.startswith('"') else arguments
    if inner is None or object_members(inner) is None:
        return None
    return FoundCall(name=name, arguments=inner.strip())
