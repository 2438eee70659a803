"""What `convert`, `pull` and `demo` share: their options, and one conversion with progress and a last word."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from teengined.cli.converter_process import run_modelpack
from teengined.cli.invocation import Invocation
from teengined.cli.output import OutputFormat, write_event, write_json
from teengined.cli.places import StorePlaces, store_places
from teengined.cli.progress import Progress, open_progress
from teengined.core.quantities import format_bytes

__all__ = ["Conversion", "conversion_options", "convert", "convert_into"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to convert, where to, and how."""

    reference: str
    store: Path | None = None
    """None: the daemon's."""
    choices: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """`name`, `precision`, `budget`, `calibration`, `compute_dtype`: None or absent is the converter's choice."""


def conversion_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the verb takes `store` and the `choices`."""
    options = (
        click.option("--name", metavar="NAME", help="The package's name; else from the source."),
        click.option(
            "--precision",
            metavar="P",
            multiple=True,
            callback=_joined,
            help="How matrices are stored: auto, fp32, bf16, fp16, int8, int4, or PART=P such as layers.*.mlp=int4.",
        ),
        click.option(
            "--budget",
            metavar="SIZE",
            help="Choose each part's precision by measured error, so that the weights take at most SIZE.",
        ),
        click.option("--calibration", metavar="FILE", help="The text to measure errors on, with --budget."),
        click.option("--compute-dtype", metavar="D", help="Activations: auto, fp32, bf16, fp16."),
        click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="Directory of packages."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _joined(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str | None:
    return ",".join(values) or None


def convert(invocation: Invocation, conversion: Conversion, output: OutputFormat) -> None:
    """Convert, show progress, and tell about the package in the form asked for."""
    places = store_places(invocation, conversion.store)
    done = convert_into(places, conversion, open_progress(json_lines=output is OutputFormat.JSONL))
    if output is OutputFormat.JSONL:
        write_event("done", done)
    elif output is OutputFormat.JSON:
        write_json("convert", done)
    else:
        for line in _choice_lines(done.get("precisions", [])):
            click.echo(line, err=True)
        for note in done["notes"]:
            click.echo(f"note: {note}", err=True)
        click.echo(f"{done['name']}  {format_bytes(done['size_bytes'])}  {done['precision']}  {done['path']}")


def _choice_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was chosen for each part, and what the other precisions would have cost."""
    return [
        f"{row['part']:<24}{row['precision']:<6}{format_bytes(row['size_bytes']):>8}  "
        + "  ".join(f"{name} {option['error']:.2g}" for name, option in row["options"].items())
        for row in rows
    ]


def convert_into(places: StorePlaces, conversion: Conversion, progress: Progress) -> dict[str, Any]:
    """Convert into `places` and return what the converter says of the package: its name, path, size and notes."""
    arguments = ["convert", *places.arguments]
    for choice, value in conversion.choices.items():
        if value is not None:
            arguments += [f"--{choice.replace('_', '-')}", value]
    done = run_modelpack([*arguments, "--", conversion.reference], conversion.reference, progress)
    return {key: value for key, value in done.items() if key != "event"}
