"""`teengine metrics`: what a monitoring program would read."""

import sys

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import OutputFormat, output_options, write_json

__all__ = ["command"]


@click.command("metrics", cls=Verb, short_help="Print the daemon's metrics, as Prometheus reads them.")
@output_options(OutputFormat.TEXT, OutputFormat.JSON)
@click.pass_obj
def command(invocation: Invocation, output: OutputFormat) -> None:
    """Print the daemon's counters, gauges and histograms as OpenMetrics text, or with -o json as values.

    The daemon serves the same text over HTTP where `metrics.listen` says so.
    """
    with invocation.client() as client:
        metrics = client.metrics()
    if output is OutputFormat.JSON:
        write_json("metrics", {"items": metrics.families})
    else:
        sys.stdout.write(metrics.text)
