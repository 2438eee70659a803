"""`teengine rm`: delete packages."""

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.model_name import MODEL

__all__ = ["command"]


@click.command("rm", cls=Verb, short_help="Delete model packages.")
@click.argument("models", metavar="MODEL...", type=MODEL, nargs=-1, required=True)
@click.pass_obj
def command(invocation: Invocation, models: tuple[str, ...]) -> None:
    """Delete each package MODEL. One that is loaded is refused: unload it first."""
    with invocation.client() as client:
        for model in models:
            client.remove(model)
            click.echo(f"removed {model}", err=True)
