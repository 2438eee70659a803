"""Sampling parameters as a chat's `/set` reads and shows them. Pure, but for a schema's file."""

import difflib
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from teengined.cli.grammar import grammar_from
from teengined.core.sampling import Grammar, SamplingParams

__all__ = ["DEFAULT", "changed", "parameter_names", "setting_of", "shown", "unlike_default"]

DEFAULT = "default"
# A chat shows one answer, and only its text.
_NOT_IN_A_CHAT = frozenset({"num_choices", "logprobs", "prompt_logprobs"})
_OTHER_NAMES: Mapping[str, str] = MappingProxyType({"format": "grammar"})
_WORDS_OF_TRUTH: Mapping[str, bool] = MappingProxyType({"on": True, "true": True, "off": False, "false": False})
_DEFAULTS = SamplingParams()


def parameter_names() -> tuple[str, ...]:
    """Return what can be set, in the order of `SamplingParams`."""
    return tuple(field.name for field in fields(SamplingParams) if field.name not in _NOT_IN_A_CHAT)


def setting_of(name: str) -> str:
    """Return the parameter that the user means by `name`.

    Raises:
        ValueError: there is none.
    """
    plain = name.replace("-", "_")
    found = _OTHER_NAMES.get(plain, plain)
    if found in parameter_names():
        return found
    if found in _NOT_IN_A_CHAT:
        raise ValueError(f"{found} has no meaning in a chat, which shows one answer and only its text")
    near = difflib.get_close_matches(plain, ["system", *_OTHER_NAMES, *parameter_names()], n=1)
    raise ValueError(f"no parameter is named {name!r}" + (f"; did you mean {near[0]}?" if near else ""))


def changed(sampling: SamplingParams, name: str, text: str) -> SamplingParams:
    """Return `sampling` with one parameter as the user wrote it; `default` takes it back.

    Raises:
        ValueError: no such parameter, or a value that it cannot have.
    """
    setting = setting_of(name)
    value = getattr(_DEFAULTS, setting) if text == DEFAULT else _read(setting, text)
    return replace(sampling, **{setting: value})


def shown(sampling: SamplingParams, name: str) -> str:
    """Return a parameter's value as `/set` would take it."""
    return _written(getattr(sampling, setting_of(name)))


def unlike_default(sampling: SamplingParams) -> tuple[str, ...]:
    """Return the parameters that were set."""
    return tuple(name for name in parameter_names() if getattr(sampling, name) != getattr(_DEFAULTS, name))


def _read(setting: str, text: str) -> Any:
    hint = typing.get_type_hints(SamplingParams)[setting]
    read, what = _READERS[hint]
    try:
        return read(text)
    except (ValueError, KeyError) as error:
        if hint == _GRAMMAR:
            raise  # It says more than what was expected.
        raise ValueError(f"{setting} takes {what} or {DEFAULT}, not {text!r:.60}") from error


def _truth(text: str) -> bool:
    return _WORDS_OF_TRUTH[text.lower()]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.replace(",", " ").split())


def _texts(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _biases(text: str) -> tuple[tuple[int, float], ...]:
    pairs = [word.split(":") for word in text.replace(",", " ").split()]
    return tuple((int(token), float(bias)) for token, bias in pairs)


_GRAMMAR = Grammar | None
_READERS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_truth, "on or off"),
    tuple[int, ...]: (_numbers, "token ids"),
    tuple[str, ...]: (_texts, "texts, in quotes where they have spaces"),
    tuple[tuple[int, float], ...]: (_biases, "pairs of token id and bias, as in 42:-1.5"),
    _GRAMMAR: (grammar_from, "json or a file"),
}


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Grammar):
        return value.kind.value
    if isinstance(value, tuple):
        return " ".join(map(_written_item, typing.cast("Sequence[Any]", value))) or "nothing"
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _written_item(item: Any) -> str:
    if isinstance(item, tuple):
        token, bias = typing.cast("tuple[int, float]", item)
        return f"{token}:{bias:g}"
    return shlex.quote(item) if isinstance(item, str) else str(item)
