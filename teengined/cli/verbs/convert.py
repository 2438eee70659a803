"""`teengine convert`: a checkpoint becomes a model package."""

from pathlib import Path
from typing import Any

import click

from teengined.cli.conversion import Conversion, conversion_options, convert
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import OutputFormat, output_options

__all__ = ["command"]


@click.command("convert", cls=Verb, short_help="Convert a checkpoint into a model package.")
@click.argument("source", metavar="SRC")
@conversion_options
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL)
@click.pass_obj
def command(invocation: Invocation, source: str, store: Path | None, output: OutputFormat, **choices: Any) -> None:
    """Convert SRC: a Hugging Face directory, a .gguf file, an alias, or ORG/NAME on the hub.

    An interrupted conversion goes on where it stopped when the same command is given again.
    """
    convert(invocation, Conversion(reference=source, store=store, choices=choices), output)
