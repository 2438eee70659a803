"""`teengine unload` (also `stop`): give a model's memory back."""

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.model_name import MODEL

__all__ = ["command"]


@click.command("unload", cls=Verb, short_help="Give a model's memory back.")
@click.argument("models", metavar="MODEL...", type=MODEL, nargs=-1, required=True)
@click.option("--now", is_flag=True, help="Cut off running requests instead of waiting for them.")
@click.pass_obj
def command(invocation: Invocation, models: tuple[str, ...], now: bool) -> None:
    """Unload each MODEL. Its running requests finish first."""
    with invocation.client() as client:
        for model in models:
            client.unload(model, now=now)
            click.echo(f"unloaded {model}", err=True)
