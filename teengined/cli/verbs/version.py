"""`teengine version`: of the command, and of the daemon where one answers."""

import sys

import click

from teengined import __version__
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import OutputFormat, output_options, write_json
from teengined.core.errors import DaemonUnreachable

__all__ = ["command"]


@click.command("version", cls=Verb, short_help="Print the versions of command and daemon.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON)
@click.pass_obj
def command(invocation: Invocation, output: OutputFormat) -> None:
    """Print the version of this command, and the daemon's where one is running."""
    daemon = _daemon_version(invocation)
    if output is OutputFormat.JSON:
        write_json("version", {"client": __version__, "daemon": daemon})
    else:
        sys.stdout.write(f"teengine   {__version__}\nteengined  {daemon or 'not running'}\n")


def _daemon_version(invocation: Invocation) -> str | None:
    try:
        with invocation.client() as client:
            return client.hello().version
    except DaemonUnreachable:
        return None
