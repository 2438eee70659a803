"""The option that says where tokens are guessed ahead from; `load` and `run` take the same one."""

from collections.abc import Callable
from typing import Any, Literal

import click

__all__ = ["Speculation", "speculation_option"]

Speculation = Literal["", "off", "lookup", "draft", "auto"]


def _or_empty(_context: click.Context, _option: click.Parameter, value: str | None) -> str:
    return value or ""


def speculation_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option, whose value goes into `LoadModel`; empty where it was not given."""
    return click.option(
        "--speculation",
        type=click.Choice(["off", "lookup", "draft", "auto"]),
        callback=_or_empty,
        help="Where tokens are guessed ahead from; default auto. Answers are the same.",
    )(function)
