"""The options that say where tokens are guessed ahead from; `load` and `run` take the same ones."""

from collections.abc import Callable
from typing import Any, Literal

import click

from teengined.cli.model_name import MODEL

__all__ = ["Speculation", "speculation_options"]

Speculation = Literal["", "off", "lookup", "draft", "auto"]


def _or_empty(_context: click.Context, _option: click.Parameter, value: str | None) -> str:
    return value or ""


def speculation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, whose values go into `LoadModel`; empty where they were not given."""
    draft = click.option(
        "--draft",
        type=MODEL,
        default="",
        metavar="NAME",
        help="A loaded model with the same tokens that guesses for this one.",
    )
    source = click.option(
        "--speculation",
        type=click.Choice(["off", "lookup", "draft", "auto"]),
        callback=_or_empty,
        help="Where tokens are guessed ahead from; default auto. Answers are the same.",
    )
    return source(draft(function))
