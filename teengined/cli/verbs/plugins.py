"""`teengine plugins`: what is installed, where it came from, and whether it works here."""

import click

from teengined.cli.invocation import Invocation, ListGroup
from teengined.cli.output import Column, Listing, OutputFormat, output_options, write_listing
from teengined.protocol.messages import PluginItem

__all__ = ["command"]

COLUMNS: tuple[Column[PluginItem], ...] = (
    Column(header="KIND", cell=lambda item: item.kind),
    Column(header="NAME", cell=lambda item: item.name),
    Column(header="AVAILABLE", cell=lambda item: "yes" if item.available else f"no: {item.reason}"),
    Column(header="ENTRY POINT", cell=lambda item: item.entry_point),
    Column(header="DISTRIBUTION", cell=lambda item: item.distribution),
)


@click.group("plugins", cls=ListGroup, short_help="List drivers, policies, precisions, transports and sources.")
def command() -> None:
    """List what the daemon can use: drivers, policies, precisions, transports and sources."""


@command.command("ls")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL, OutputFormat.NAME)
@click.pass_obj
def ls(invocation: Invocation, output: OutputFormat) -> None:
    """List the installed plugins."""
    with invocation.client() as client:
        items = client.plugins().plugins
    write_listing(
        Listing(kind="plugins", items=items, columns=COLUMNS, name=lambda item: f"{item.kind}/{item.name}"), output
    )
