"""Fields of messages as hypothesis draws them: most of the right names and types, some of any other."""

import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from types import UnionType
from typing import Any, Literal

from hypothesis import strategies as st

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=8)
    | st.lists(st.integers(0, 9), max_size=4)
    | st.dictionaries(st.text(max_size=4), st.integers(-9, 9), max_size=2)
)
__all__ = ["ANYTHING", "wire_fields"]

PLAIN: Mapping[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20) | st.sampled_from(["bytes", "mean", "last"]),
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    int: st.integers(-2, 300) | st.integers(-(2**63), 2**64 - 1),
    float: st.floats(-2.0, 3.0) | st.floats(),
    type(None): st.none(),
}


def wire_fields(kind: type, **known: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Return tables of any of a dataclass's fields as they go over the wire; those in `known` have that value."""
    hints = typing.get_type_hints(kind)
    fixed = {name: st.just(value) for name, value in known.items()}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in known:
            (optional if has_default else fixed)[field.name] = _mostly(_value(hints[field.name]))
    return st.fixed_dictionaries(fixed, optional=optional)


def _mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 40).flatmap(lambda number: ANYTHING if number == 0 else right)


def _value(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a type hint in wire form."""
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from([item.value for item in hint])
    if dataclasses.is_dataclass(hint):
        return st.deferred(lambda: wire_fields(typing.cast("type", hint)))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (UnionType, typing.Union):
        return st.one_of(*map(_value, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(_value(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(_value, arguments)).map(list)
    if origin is Mapping:
        return st.dictionaries(_value(arguments[0]), _value(arguments[1]), max_size=2)
    raise AssertionError(f"no values are known of {hint}")
