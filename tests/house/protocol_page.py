"""Writes docs/protocol.md from the message classes themselves: `make docs`. A house test holds the page to this."""

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

from teengined.core import device, errors, plan, request, sampling
from teengined.protocol import messages, worker_messages
from teengined.protocol.codec import PROTOCOL_VERSION, CodecLimits
from teengined.service.settings import ProtocolSettings

__all__ = ["render"]

HEAD = f"""# The protocol

<!-- Made by `make docs` from teengined/protocol and teengined/core. -->

How a client in any language talks to the daemon. `teengined.client` is the Python one.

## Bytes

ZeroMQ: the daemon has a ROUTER socket at `ipc://<runtime directory>/teengined.sock` (mode 0660), a client a DEALER. A
message is two frames:

1. three bytes: `T`, `E`, and the protocol version, now {PROTOCOL_VERSION};
2. a msgpack array of three: the *correlation*, the *tag*, and a table of the message's fields.

The correlation is a number from 0 to 2^63 - 1 that the client chooses for a call; every message that answers the call
carries it. Several calls may be under way at once.

Text is UTF-8 `str`, raw bytes are `bin`; there are no extension types and no keys but text. Where a field has a
default it may be left out. Unknown fields, missing fields and wrong types are refused. Tags are never reused: a new
field has a default, a changed meaning gets a new tag. A whole number serves as a `float`.

The daemon takes bodies of up to {CodecLimits().max_message_bytes} bytes and arrays of up to {CodecLimits().max_items}
items (`protocol.max_message`, `protocol.max_items`), tables of up to 1024 keys, and {ProtocolSettings().max_structures}
arrays and tables in one message (`protocol.max_structures`). What is not a message is answered
with `error`, whose code is `malformed`, `unknown_version` or `message_too_large`. Nothing is ever unpickled.

## Calls

```
{{calls}}
```

A call ends with exactly one final message, `ErrorReply` or its own kind. Chunks of an answer carry a `sequence` from 0
without gap, over all its choices; the final `Finished` carries the next number. Request ids are made by the daemon.

A client says how many chunks it takes (`Generate.credits`) and sends `Grant` under the same correlation when it has
room for more. What may not be sent is joined into larger chunks, up to `batching.max_stream_buffer`; beyond that the
call ends with `slow_reader`. While a client has a call under way, the daemon sends it `Done` under correlation 0 from
time to time, to learn whether it is still there: a client drops it. Clients therefore choose numbers from 1.

## Error codes

`ErrorReply.code` is one of the codes in the second column; `teengine` exits with the number in the third.

```
{{errors}}
```
"""


def render() -> str:
    """Return the whole page."""
    head = HEAD.replace("{calls}", _picture(messages)).replace("{errors}", _picture(errors))
    parts = [head, "## Messages between client and daemon\n", *_messages(messages, messages.CLIENT_MESSAGES)]
    parts += ["## Values inside messages\n", *_values()]
    parts += [
        "## Messages between daemon and workers\n",
        "They travel over a private socket between one daemon and the workers it started; both are always of the same",
        "version.\n\n```",
        _picture(worker_messages),
        "```\n",
        *_messages(worker_messages, worker_messages.WORKER_MESSAGES),
    ]
    return "\n".join(parts)


def _picture(module: ModuleType) -> str:
    """Return the indented block of a module's docstring."""
    lines = (module.__doc__ or "").splitlines()
    block = [line for line in lines if line.startswith("    ")]
    return inspect.cleandoc("\n".join(block)) if block else ""


def _messages(module: ModuleType, tags: Mapping[str, type]) -> Iterator[str]:
    inner = [name for name in module.__all__ if inspect.isclass(getattr(module, name))]
    titles = {cls.__name__: f"`{tag}`: {cls.__name__}" for tag, cls in tags.items()}
    for name in sorted(inner, key=lambda name: titles.get(name, f"~{name}")):
        yield from _record(getattr(module, name), titles.get(name, f"inside others: {name}"))


def _values() -> Iterator[str]:
    for module in (request, sampling, device, plan):
        for name in module.__all__:
            if inspect.isclass(getattr(module, name)):
                yield from _record(getattr(module, name), name)


def _record(record: type, title: str) -> Iterator[str]:
    (node,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(node, ast.ClassDef)
    yield f"### {title}\n"
    yield f"{' '.join((ast.get_docstring(node) or '').split())}\n"
    rows = [*_fields(node), *_members(node)]
    if rows:
        yield "\n".join(rows) + "\n"


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            kind = ast.unparse(statement.annotation).replace("'", "")
            default = "" if statement.value is None else f" = {_default(statement.value)}"
            yield f"- `{ast.unparse(statement.target)}: {kind}{default}`{_text_of(following)}"


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    return text if not text.startswith("field(") else "the default of its kind"


def _members(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            yield f"- `{statement.value.value}`"


def _text_of(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str() as text)):
            return f": {' '.join(text.split())}"
        case _:
            return ""


if __name__ == "__main__":
    sys.stdout.write(render())
