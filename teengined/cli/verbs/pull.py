"""`teengine pull`: get a model that somebody else keeps, and convert it."""

import re
from pathlib import Path
from typing import Any

import click

from teengined.cli.conversion import Conversion, conversion_options, convert
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import OutputFormat, output_options
from teengined.core.errors import SourceError

__all__ = ["command"]

# A hub id: owner, name, and at most a revision.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@click.command("pull", cls=Verb, short_help="Get a model by alias or ORG/NAME and convert it.")
@click.argument("model")
@conversion_options
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL)
@click.pass_obj
def command(invocation: Invocation, model: str, store: Path | None, output: OutputFormat, **choices: Any) -> None:
    """Get MODEL, an alias such as smollm2 or ORG/NAME on the hub, and convert it into a package."""
    from teengined.modelpack.aliases import ALIASES

    if model not in ALIASES and not _HUB_ID.fullmatch(model):
        known = ", ".join(ALIASES)
        raise SourceError(
            f"{model!r} is neither an alias ({known}) nor ORG/NAME",
            hint=f"teengine convert {model}   converts a directory or a .gguf file of this machine",
        )
    convert(invocation, Conversion(reference=model, store=store, choices=choices), output)
