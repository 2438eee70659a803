"""The options of `run` for how tokens are drawn."""

from collections.abc import Callable
from typing import Any

import click

from teengined.cli.grammar import grammar_from
from teengined.core.sampling import SamplingParams

__all__ = ["sampling_from", "sampling_options"]

_DEFAULTS = SamplingParams()


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; their values come as keyword arguments, for `sampling_from`."""
    options = (
        click.option("--temperature", type=float, default=_DEFAULTS.temperature, help="0, the default, is greedy."),
        click.option("--top-p", type=float, default=_DEFAULTS.top_p, help="Draw from the likeliest this share."),
        click.option("--top-k", type=int, default=_DEFAULTS.top_k, help="Draw from the likeliest so many; 0: all."),
        click.option("--min-p", type=float, default=_DEFAULTS.min_p, help="Least share of the likeliest one's."),
        click.option("--max-tokens", type=int, default=_DEFAULTS.max_tokens, show_default=True, help="Longest answer."),
        click.option("--seed", type=int, default=_DEFAULTS.seed, help="Fixes every draw."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
        click.option("--format", "form", metavar="json|FILE", help="Answer in JSON, or by the JSON schema in FILE."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def sampling_from(form: str | None, **values: Any) -> SamplingParams:
    """Return the parameters for the options' values.

    Raises:
        click.UsageError: a value that no sampler can honour, or a schema that cannot be read.
    """
    try:
        return SamplingParams(grammar=grammar_from(form) if form else None, **values)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
