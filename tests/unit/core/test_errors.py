"""The error tree is what its picture says, and every class can travel."""

import re

import pytest

from teengined.core import errors
from teengined.core.errors import InternalError, TeengineError, error_class

_LINE = re.compile(r"^    ([│├└─ ]*)(\w+) +([a-z_]+) +(\d+)  \S")


def _classes(root: type[TeengineError] = TeengineError) -> list[type[TeengineError]]:
    return [leaf for child in root.__subclasses__() for leaf in (child, *_classes(child))]


def _drawn() -> list[tuple[int, str, str, int]]:
    """Depth, class, code and exit status of each line of the picture."""
    matches = (_LINE.match(line) for line in (errors.__doc__ or "").splitlines())
    return [(len(match[1]) // 4, match[2], match[3], int(match[4])) for match in matches if match]


def _depth(cls: type[TeengineError]) -> int:
    return cls.__mro__.index(TeengineError)


def test_picture_shows_exactly_the_classes_in_their_order() -> None:
    assert [(depth, name) for depth, name, _, _ in _drawn()] == [(_depth(cls), cls.__name__) for cls in _classes()]


def test_picture_shows_each_code_and_exit_status() -> None:
    assert [line[1:] for line in _drawn()] == [(cls.__name__, cls.code, cls.exit_code) for cls in _classes()]


def test_no_two_classes_share_a_code() -> None:
    codes = [cls.code for cls in _classes()]

    assert len(codes) == len(set(codes))


def test_every_class_is_exported() -> None:
    assert {cls.__name__ for cls in _classes()} <= set(errors.__all__)


@pytest.mark.parametrize("cls", _classes(), ids=lambda cls: cls.code)
def test_code_leads_back_to_its_class(cls: type[TeengineError]) -> None:
    assert error_class(cls.code) is cls


def test_unknown_code_becomes_an_internal_error() -> None:
    assert error_class("from_a_later_version") is InternalError


def test_message_and_hint_stay_apart() -> None:
    error = errors.QueueFull("the queue holds 64 requests", hint="try again later")

    assert (error.message, error.hint, str(error)) == (
        "the queue holds 64 requests",
        "try again later",
        "the queue holds 64 requests",
    )


def test_only_errors_that_may_pass_are_retryable() -> None:
    retryable = {cls.__name__ for cls in _classes() if cls.retryable}

    assert retryable >= {"QueueFull", "Draining", "WorkerLost", "TransportTimeout"}
    assert not retryable & {"ConfigError", "UnknownModel", "ContextTooLong", "PackageCorrupt", "ProtocolError"}
