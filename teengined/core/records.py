"""Frozen dataclasses to plain mappings and back, strictly typed.

One decoder serves configuration files, wire messages, manifests and plans, so that an unknown key or a wrong type is
found in one place and told in one form. It knows: bool, int, float, str, bytes, None, `Literal`, `StrEnum`, optional
and other unions, `tuple[X, ...]`, fixed tuples, `Mapping[str, X]`, and nested dataclasses.
"""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from teengined.core.nearest import nearest

__all__ = ["RecordError", "from_mapping", "to_mapping"]

T = TypeVar("T")
# Types whose values are the same on both sides.
_PLAIN = frozenset({bool, int, str, bytes, float})


class RecordError(ValueError):
    """A plain value does not have the shape of the record. Callers map it to their own error.

    `path` is dotted from the root (`"devices[0].memory"`), `problem` a clause without the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        """Keep path and problem apart for the caller's sentence."""
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def to_mapping(value: Any) -> Any:
    """Return `value` with every dataclass as a dict, tuple as a list and enum as its value; `None` fields stay."""
    kind = typing.cast("type[Any]", type(value))
    if kind in _PLAIN:  # Most values by far, on the way of every token.
        return value
    if (names := _names(kind)) is not None:
        return {name: to_mapping(getattr(value, name)) for name in names}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in typing.cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        items = typing.cast("Sequence[Any]", value)
        # A prompt may have a million tokens, and whoever encodes them serves others too.
        return list(items) if _PLAIN.issuperset(map(type, items)) else [to_mapping(item) for item in items]
    return value


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...] | None:
    """Return the fields of a dataclass; None for any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def from_mapping(record: type[T], value: Any, path: str = "") -> T:
    """Return a `record` built from a plain mapping.

    Raises:
        RecordError: unknown or missing key, wrong type, or a value that the record's own check refuses.
    """
    if not isinstance(value, Mapping):
        raise RecordError(path, f"expected a table, got {_name_of(value)}")
    table = typing.cast("Mapping[Any, Any]", value)
    hints = _hints(record)
    _refuse_unknown_keys(table, hints, path)
    arguments: dict[str, Any] = {}
    for key, item in typing.cast("Mapping[str, Any]", table).items():
        hint = hints[key]
        as_it_is = type(item) is hint and hint in _PLAIN
        arguments[key] = item if as_it_is else _convert(hint, item, f"{path}.{key}" if path else key)
    missing = [field for field in _required(record) if field not in arguments]
    if missing:
        raise RecordError(path, f"missing {', '.join(missing)}")
    try:
        return record(**arguments)
    except (ValueError, TypeError) as error:
        raise RecordError(path, str(error)) from error


def _refuse_unknown_keys(table: Mapping[Any, Any], hints: Mapping[str, Any], path: str) -> None:
    for key in table:
        if not isinstance(key, str) or key not in hints:
            near = nearest(key, hints) if isinstance(key, str) else ()
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            raise RecordError(path, f"unknown key {key!r:.80}{suggestion}")


@functools.cache
def _hints(record: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(record)


@functools.cache
def _required(record: type[Any]) -> tuple[str, ...]:
    missing = dataclasses.MISSING
    return tuple(
        field.name
        for field in dataclasses.fields(record)
        if field.default is missing and field.default_factory is missing
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, path)
    if origin is typing.Literal:
        return _convert_choice(typing.get_args(hint), value, path)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, path)
    if origin is not None and issubclass(origin, Mapping):
        return _convert_table(typing.get_args(hint)[1], value, path)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_convert_choice(tuple(member.value for member in hint), value, path))
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    hint = getattr(hint, "__supertype__", hint)  # NewType
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (not isinstance(value, bool) or hint is bool):
        return value
    raise RecordError(path, f"expected {hint.__name__}, got {_name_of(value)}")


def _convert_choice(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if isinstance(value, (str, int)) and value in choices:
        return value
    raise RecordError(path, f"expected one of {', '.join(map(repr, choices))}, got {value!r:.60}")


def _convert_union(hints: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in hints:
        return None
    candidates = [hint for hint in hints if hint is not types.NoneType]
    problems: list[RecordError] = []
    for hint in candidates:
        try:
            return _convert(hint, value, path)
        except RecordError as problem:
            problems.append(problem)
    raise problems[0]


def _convert_tuple(hints: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise RecordError(path, f"expected a list, got {_name_of(value)}")
    items = typing.cast("Sequence[Any]", value)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hint = hints[0]
        if hint in _PLAIN and {hint}.issuperset(map(type, items)):
            return tuple(items)
        plain = hint if hint in _PLAIN else None  # One wrong item in a million must not cost a million conversions.
        return tuple(
            item if type(item) is plain else _convert(hint, item, f"{path}[{index}]")
            for index, item in enumerate(items)
        )
    if len(items) != len(hints):
        raise RecordError(path, f"expected {len(hints)} items, got {len(items)}")
    return tuple(
        _convert(hint, item, f"{path}[{index}]") for index, (hint, item) in enumerate(zip(hints, items, strict=True))
    )


def _convert_table(hint: Any, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RecordError(path, f"expected a table, got {_name_of(value)}")
    table = typing.cast("Mapping[Any, Any]", value)
    for key in table:
        if not isinstance(key, str):
            raise RecordError(path, f"expected text as key, got {_name_of(key)}")
    return {key: _convert(hint, item, f"{path}.{key:.80}") for key, item in table.items()}


def _name_of(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a table" if isinstance(value, Mapping) else type(value).__name__
