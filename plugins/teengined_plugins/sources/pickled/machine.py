"""A small machine that reads the pickle inside a `.pt` file. It is not Python's: it cannot import, and calls nothing.

Of the pickle language it knows the opcodes that torch writes. A name leads to the table in `known.py` or to a refusal;
a call makes the plain value that the table says; state that an object would be given is dropped. Time and memory are
linear in the pickle's length, but for what is copied over and over, which the confinement of the process ends. Values
that are used many times cost nothing here, and are counted where they are told. Source of the opcodes' meaning: the
documentation strings of Python's `pickletools`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from teengined_plugins.sources.pickled.known import Named, build, named, storage_of
from teengined_plugins.sources.pickled.stream import ByteStream, ValueStack, text_of
from teengined_plugins.sources.pickled.values import Inert, RefusedFile

__all__ = ["MAX_PICKLE_BYTES", "read_pickle"]

# Some 200 bytes a tensor: enough for the largest checkpoints, a hundred thousand parameters, three times over.
MAX_PICKLE_BYTES = 64 << 20
# Seeds of random generators have 128 bits; nothing else in a checkpoint has more than 64.
_MAX_NUMBER_BYTES = 32
_PROTOCOLS = range(2, 6)
_STOP = ord(".")


def read_pickle(content: bytes) -> object:
    """Return what the pickle describes: dicts, lists, tuples, numbers, texts, and the values of `values.py`.

    Raises:
        RefusedFile: it is damaged, or names or does something that weights do not need.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise RefusedFile(f"has a description of {len(content)} bytes; {MAX_PICKLE_BYTES} are read at most")
    machine = _Machine(stream=ByteStream(content))
    while (opcode := machine.stream.take(1)[0]) != _STOP:
        step = _STEPS.get(opcode)
        if step is None:
            at = machine.stream.position - 1
            raise RefusedFile(f"has opcode 0x{opcode:02x} at byte {at} of its description, which torch does not write")
        step(machine)
    value = machine.stack.pop()
    if not machine.stack.is_empty:
        raise RefusedFile("is damaged: its description ends before it is complete")
    return value


@dataclass(slots=True, kw_only=True)
class _Machine:
    stream: ByteStream
    stack: ValueStack = field(default_factory=ValueStack)
    memo: dict[int, object] = field(default_factory=dict[int, object])


_Step = Callable[[_Machine], None]


def _protocol(m: _Machine) -> None:
    version = m.stream.take(1)[0]
    if version not in _PROTOCOLS:
        raise RefusedFile(f"is written in pickle protocol {version}; torch writes 2")


def _skip_frame(m: _Machine) -> None:
    """Pass over the hint how far to read ahead."""
    m.stream.take(8)


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.stack.top()


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise RefusedFile("is damaged: its description refers to what is not there")
    m.stack.push(m.memo[index])


def _drop(m: _Machine) -> None:
    m.stack.pop()


def _drop_group(m: _Machine) -> None:
    m.stack.group()


def _long(m: _Machine, num_bytes: int) -> None:
    if num_bytes > _MAX_NUMBER_BYTES:
        raise RefusedFile(f"holds a number of {num_bytes} bytes")
    m.stack.push(int.from_bytes(m.stream.take(num_bytes), "little", signed=True))


def _tuple(m: _Machine, count: int) -> None:
    items = [m.stack.pop() for _ in range(count)]
    m.stack.push(tuple(reversed(items)))


def _append(m: _Machine, items: list[object]) -> None:
    target = m.stack.top()
    if isinstance(target, list):
        cast("list[object]", target).extend(items)
    elif not isinstance(target, Inert):
        raise RefusedFile("is damaged: its description appends to what is no list")


def _set_items(m: _Machine, items: list[object]) -> None:
    target = m.stack.top()
    if len(items) % 2:
        raise RefusedFile("is damaged: its description has a key without a value")
    if isinstance(target, dict):
        table = cast("dict[object, object]", target)
        # Keys of other kinds occur in the state of optimizers only, and hashing a deep tuple is not safe.
        table.update((k, v) for k, v in zip(items[::2], items[1::2], strict=True) if type(k) in (str, int))
    elif not isinstance(target, Inert):
        raise RefusedFile("is damaged: its description sets an item of what is no mapping")


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, [key, value])


def _global(m: _Machine, module: object, name: object) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise RefusedFile("is damaged: its description names something by what is no text")
    m.stack.push(named(module, name))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    _global(m, module, name)


def _reduce(m: _Machine) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        raise RefusedFile("calls what is no name of a known function; it was not run, and the file is refused")
    m.stack.push(build(function, cast("tuple[object, ...]", arguments)))


def _build(m: _Machine) -> None:
    """Drop the state: a mapping's attributes (`_metadata`), or what an object of no interest would hold."""
    m.stack.pop()
    if not isinstance(m.stack.top(), (dict, Inert)):
        raise RefusedFile("gives state to an object that takes none")


def _pushing(value: object) -> _Step:
    return lambda m: m.stack.push(value)


_STEPS: Mapping[int, _Step] = {
    0x80: _protocol,
    0x95: _skip_frame,
    ord("("): lambda m: m.stack.mark(),
    ord("0"): _drop,
    ord("1"): _drop_group,
    ord("2"): lambda m: m.stack.push(m.stack.top()),
    ord("N"): _pushing(None),
    0x88: _pushing(True),
    0x89: _pushing(False),
    ord("J"): lambda m: m.stack.push(m.stream.number("<i")),
    ord("K"): lambda m: m.stack.push(m.stream.number("<B")),
    ord("M"): lambda m: m.stack.push(m.stream.number("<H")),
    0x8A: lambda m: _long(m, m.stream.number("<B")),
    0x8B: lambda m: _long(m, m.stream.number("<I")),
    ord("G"): lambda m: m.stack.push(m.stream.number(">d")),
    ord("X"): lambda m: m.stack.push(text_of(m.stream.take(m.stream.number("<I")))),
    0x8C: lambda m: m.stack.push(text_of(m.stream.take(m.stream.number("<B")))),
    0x8D: lambda m: m.stack.push(text_of(m.stream.take(m.stream.number("<Q")))),
    ord("B"): lambda m: m.stack.push(m.stream.take(m.stream.number("<I"))),
    ord("C"): lambda m: m.stack.push(m.stream.take(m.stream.number("<B"))),
    0x8E: lambda m: m.stack.push(m.stream.take(m.stream.number("<Q"))),
    ord(")"): _pushing(()),
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("t"): lambda m: m.stack.push(tuple(m.stack.group())),
    ord("]"): lambda m: m.stack.push([]),
    ord("a"): lambda m: _append(m, [m.stack.pop()]),
    ord("e"): lambda m: _append(m, m.stack.group()),
    ord("l"): lambda m: m.stack.push(m.stack.group()),
    ord("}"): lambda m: m.stack.push({}),
    ord("s"): _set_item,
    ord("u"): lambda m: _set_items(m, m.stack.group()),
    0x8F: lambda m: m.stack.push([]),  # an empty set, kept as a list
    0x90: lambda m: _append(m, m.stack.group()),
    0x91: lambda m: m.stack.push(m.stack.group()),
    ord("q"): lambda m: _put(m, m.stream.number("<B")),
    ord("r"): lambda m: _put(m, m.stream.number("<I")),
    0x94: lambda m: _put(m, len(m.memo)),
    ord("h"): lambda m: _get(m, m.stream.number("<B")),
    ord("j"): lambda m: _get(m, m.stream.number("<I")),
    ord("c"): lambda m: _global(m, m.stream.line(), m.stream.line()),
    0x93: _stack_global,
    ord("Q"): lambda m: m.stack.push(storage_of(m.stack.pop())),
    ord("R"): _reduce,
    0x81: _reduce,  # of a class instead of a function
    ord("b"): _build,
}
