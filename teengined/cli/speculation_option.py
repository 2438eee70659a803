"""The option that says where tokens are guessed ahead from; `load` and `run` take the same one."""

from collections.abc import Callable
from typing import Any, Literal

import click

__all__ = ["Speculation", "speculation_option"]

Speculation = Literal["", "off", "lookup", "draft", "auto"]


def speculation_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option, whose value goes into `LoadModel`; empty where it was not given."""
    return click.option(
        "--speculation",
        type=click.Choice(["off", "lookup", "draft", "auto"]),
        callback=lambda _context, _option, value: value or "",
        help="Where tokens are guessed ahead from; default auto. Answers are the same.",
    )(function)
