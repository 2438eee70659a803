"""The options that say where and how a model is to run; `plan` and `load` take the same ones, `run` some of them."""

from collections.abc import Callable
from typing import Any

import click

from teengined.cli.model_name import MODEL
from teengined.core.plan import Objective

__all__ = ["numeric_options", "placement_options", "plan_fields"]


def numeric_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a model computes, named as the fields of `PlanModel`."""
    options = (
        click.option(
            "--numerics",
            type=click.Choice(["default", "strict"]),
            help="strict: an answer does not depend, to the last bit, on what else runs; slower. Else as configured.",
        ),
        click.option(
            "--kv-dtype",
            "kv_dtype",
            type=click.Choice(["auto", "int8"]),
            help="How keys and values are stored: auto as they are computed, or int8. Else as configured.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def placement_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL and the options, named as the fields of `PlanModel`; the verb takes them as `**placement`."""
    options = (
        click.argument("model", type=MODEL),
        click.option("--device", "device_ids", multiple=True, metavar="ID", help="Use only this device; repeatable."),
        click.option(
            "--context", "context_tokens", type=click.IntRange(min=1), metavar="TOKENS", help="Prompt and answer."
        ),
        click.option("--slots", "num_slots", type=click.IntRange(min=1), metavar="N", help="Sequences at once."),
        click.option("--policy", metavar="NAME", help="Placement policy; `teengine plugins` lists them."),
        click.option(
            "--objective",
            type=click.Choice([objective.value for objective in Objective]),
            help="Shorten one stream, or fill a pipeline; default latency.",
        ),
        click.option(
            "--resident",
            "resident_fraction",
            type=click.FloatRange(0, 1),
            metavar="SHARE",
            help="Keep at most this share of each stage's layers on its device, for measuring.",
        ),
        numeric_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


def plan_fields(placement: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords for `PlanModel`: what was not asked keeps the message's default."""
    fields = {name: value for name, value in placement.items() if value is not None}
    if "objective" in fields:
        fields["objective"] = Objective(fields["objective"])
    return fields
