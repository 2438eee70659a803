"""`teengine plan`: where a model would run and how fast, before anything is loaded."""

import sys
from typing import Any

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import OutputFormat, output_options, write_json
from teengined.cli.placement_options import placement_options, plan_fields
from teengined.protocol.messages import PlanModel

__all__ = ["command"]


@click.command("plan", cls=Verb, short_help="Predict where a model would run and how fast, without loading it.")
@placement_options
@output_options(OutputFormat.TABLE, OutputFormat.JSON)
@click.pass_obj
def command(invocation: Invocation, output: OutputFormat, **placement: Any) -> None:
    """Plan MODEL on the daemon's devices: stages, tiers, what bounds them, predicted speed, and the proven bound.

    Nothing is loaded. Exits with 7 where no plan fits.
    """
    with invocation.client() as client:
        reply = client.plan(PlanModel(**plan_fields(placement)))
    if output is OutputFormat.JSON:
        write_json("plan", reply)
        return
    from teengined.placement.explain import explain

    lines = explain(reply.plan, model_bytes=reply.model_bytes, suggestions=reply.suggestions)
    sys.stdout.writelines(f"{line}\n" for line in lines)
