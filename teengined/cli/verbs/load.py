"""`teengine load`: put a model onto the devices."""

from typing import Any

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.loading import load
from teengined.cli.output import OutputFormat, output_options, write_event, write_json
from teengined.cli.placement_options import placement_options, plan_fields
from teengined.cli.progress import open_progress
from teengined.cli.speculation_options import Speculation, speculation_options
from teengined.core.quantities import format_seconds
from teengined.protocol.messages import LoadModel, PlanModel

__all__ = ["command"]


@click.command("load", cls=Verb, short_help="Load a model onto the devices.")
@placement_options
@click.option("--name", default="", metavar="NAME", help="What requests call it, if not by the package's name.")
@click.option("--no-verify", is_flag=True, help="Do not check digests while reading.")
@speculation_options
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL)
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    name: str,
    no_verify: bool,
    speculation: Speculation,
    draft: str,
    output: OutputFormat,
    **placement: Any,
) -> None:
    """Load MODEL and return when it answers requests. With -o jsonl, progress is one JSON object a line."""
    plan = PlanModel(**plan_fields(placement))
    request = LoadModel(plan=plan, name=name, verify=not no_verify, speculation=speculation, draft=draft)
    with invocation.client() as client:
        try:
            loaded = load(client, request, open_progress(json_lines=output is OutputFormat.JSONL))
        except KeyboardInterrupt:
            click.echo("the daemon was not told to stop; see `teengine ps`", err=True)
            raise
    if output is OutputFormat.TABLE:
        click.echo(f"loaded {loaded.deployment.model} in {format_seconds(loaded.seconds)}", err=True)
    elif output is OutputFormat.JSONL:
        write_event("done", loaded)
    else:
        write_json("load", loaded)
