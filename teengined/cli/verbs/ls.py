"""`teengine ls`: the packages in the daemon's store."""

import time

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import Column, Listing, OutputFormat, output_options, write_listing
from teengined.cli.prose import age, count, printable
from teengined.core.quantities import format_bytes
from teengined.protocol.messages import ModelSummary

__all__ = ["command", "short_digest"]


def short_digest(digest: str) -> str:
    """Return the twelve characters of a digest that tell packages apart."""
    return digest.rpartition(":")[2][:12]


@click.command("ls", cls=Verb, short_help="List the model packages.")
@click.argument("prefix", default="")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL, OutputFormat.NAME)
@click.pass_obj
def command(invocation: Invocation, prefix: str, output: OutputFormat) -> None:
    """List the model packages whose names begin with PREFIX."""
    with invocation.client() as client:
        models = client.models(prefix).models
    now_unix_seconds = time.time()
    columns: list[Column[ModelSummary]] = [
        Column(header="NAME", cell=lambda model: model.name),
        Column(header="ID", cell=lambda model: short_digest(model.digest)),
        Column(header="SIZE", cell=lambda model: format_bytes(model.size_bytes), right=True),
        Column(header="PARAMS", cell=lambda model: count(model.num_parameters), right=True),
        Column(header="ARCHITECTURE", cell=lambda model: model.architecture),
        Column(header="PRECISION", cell=lambda model: model.precision),
        Column(header="MODIFIED", cell=lambda model: age(model.modified_unix_seconds, now_unix_seconds)),
    ]
    begins = f" whose name begins with {printable(prefix)!r}" if prefix else ""
    nothing = f"there is no package{begins}; `teengine pull smollm2` gets one, `teengine convert` makes one"
    listing = Listing(kind="ls", items=models, columns=columns, name=lambda model: model.name, nothing=nothing)
    write_listing(listing, output)
