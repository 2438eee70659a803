"""What every verb takes: which daemon, how long to wait, colour, and whether a failure shows its traceback."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from teengined.client import Client

__all__ = ["Colour", "Invocation", "ListGroup", "Verb", "invocation_of", "shared_options"]

Colour = Literal["auto", "always", "never"]

# A status or a list answers in milliseconds; a plan of a large model may take two seconds.
DEFAULT_TIMEOUT_SECONDS = 30.0
# A day. Poll timeouts overflow somewhere above it.
LONGEST_TIMEOUT_SECONDS = 86_400.0


@dataclass(slots=True)
class Invocation:
    """One run of the command. Options fill it before or after the verb, whichever the user typed."""

    endpoint: str | None = None
    """None: the client library's own order of places."""
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    """Longest silence of the daemon in one call."""
    colour: Colour = "auto"
    debug: bool = False

    def client(self, timeout_seconds: float | None = None) -> "Client":
        """Return a client of the daemon; the caller closes it."""
        from teengined.client import Client

        return Client(self.endpoint, timeout_seconds=timeout_seconds or self.timeout_seconds)

    def uses_colour(self, stream: IO[str]) -> bool:
        """Say whether `stream` gets colour: a terminal, unless NO_COLOR is set or the flag says otherwise."""
        if self.colour == "auto":
            return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return self.colour == "always"


def invocation_of(context: click.Context) -> Invocation:
    """Return the invocation of `context`, which the outermost command made."""
    return context.ensure_object(Invocation)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value != value:  # NaN is in every range, and a wait for it never ends.
        raise click.BadParameter(f"{value} is not a number", context, parameter)
    if parameter.name and value not in (None, False):
        setattr(invocation_of(context), parameter.name, value)


def shared_options(*, hidden: bool) -> list[click.Option]:
    """Return fresh copies of the options that stand before or after a verb."""
    return [
        click.Option(
            ["--endpoint"],
            metavar="ADDRESS",
            help="The daemon's socket or runtime directory; TEENGINE_HOST, then the usual places, by default.",
            expose_value=False,
            callback=_remember,
            hidden=hidden,
        ),
        click.Option(
            ["--timeout", "timeout_seconds"],
            type=click.FloatRange(min=0, max=LONGEST_TIMEOUT_SECONDS, min_open=True),
            metavar="SECONDS",
            help=f"Longest wait for the daemon's next word; default {DEFAULT_TIMEOUT_SECONDS:g}.",
            expose_value=False,
            callback=_remember,
            hidden=hidden,
        ),
        click.Option(
            ["--color", "colour"],
            type=click.Choice(["auto", "always", "never"]),
            help="Colour on standard output; default auto. NO_COLOR is honoured.",
            expose_value=False,
            callback=_remember,
            hidden=hidden,
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            help="Show the traceback of a failure.",
            expose_value=False,
            callback=_remember,
            hidden=hidden,
        ),
    ]


class Verb(click.Command):
    """A command that also understands the shared options, so that `teengine ps --debug` works."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Append the shared options, out of sight: the top level's help lists them."""
        own = super().get_params(ctx)
        taken = {option for parameter in own for option in parameter.opts}
        return [*own, *(option for option in shared_options(hidden=True) if not taken.intersection(option.opts))]


class ListGroup(click.Group):
    """A group whose bare name means its list: `teengine plugins -o json` is `teengine plugins ls -o json`."""

    command_class = Verb
    default_verb = "ls"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default verb in where none is named."""
        if not _names_a_verb(args, ctx.help_option_names):
            args = [self.default_verb, *args]
        return super().parse_args(ctx, args)


def _names_a_verb(args: Sequence[str], help_options: Sequence[str]) -> bool:
    return bool(args) and (not args[0].startswith("-") or args[0] in help_options)
