"""`teengine requests`: what is under way, and a way to stop it."""

import click

from teengined.cli.invocation import Invocation, ListGroup
from teengined.cli.output import Column, Listing, OutputFormat, output_options, write_listing
from teengined.cli.prose import printable
from teengined.core.errors import TeengineError
from teengined.core.quantities import format_seconds
from teengined.protocol.messages import RequestItem

__all__ = ["command"]


def _prompt_of(item: RequestItem) -> str:
    """Return the prompt's tokens, and how many of them were there already."""
    cached = f" ({item.num_cached_tokens} cached)" if item.num_cached_tokens else ""
    return f"{item.num_prompt_tokens}{cached}"


def _answer_of(item: RequestItem) -> str:
    """Return tokens so far and at most, over all choices; nothing where nothing is drawn."""
    return f"{item.num_emitted_tokens}/{item.num_choices * item.max_tokens}" if item.max_tokens else ""


_NOTHING = "no request is under way"
COLUMNS: tuple[Column[RequestItem], ...] = (
    Column(header="ID", cell=lambda item: item.request_id),
    Column(header="MODEL", cell=lambda item: item.model),
    Column(header="OWNER", cell=lambda item: item.owner),
    # A caller chose it, and it goes to another's terminal.
    Column(header="NAME", cell=lambda item: printable(item.client_id).replace("\n", " ").replace("\t", " ")),
    Column(header="STATE", cell=lambda item: item.state),
    Column(header="PRIORITY", cell=lambda item: str(item.priority), right=True),
    Column(header="PROMPT", cell=_prompt_of, right=True),
    Column(header="ANSWER", cell=_answer_of, right=True),
    Column(header="AGE", cell=lambda item: format_seconds(item.age_seconds), right=True),
)


@click.group("requests", cls=ListGroup, short_help="List the requests under way, or cancel them.")
def command() -> None:
    """Look at the requests under way, and stop them."""


@command.command("ls")
@click.option("--model", default="", metavar="NAME", help="Only of this loaded model.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL, OutputFormat.NAME)
@click.pass_obj
def ls(invocation: Invocation, model: str, output: OutputFormat) -> None:
    """List the requests under way, oldest first. Their texts are shown to nobody.

    PROMPT counts tokens, ANSWER those so far and at most.
    """
    with invocation.client() as client:
        items = client.requests(model).requests
    listing = Listing(
        kind="requests", items=items, columns=COLUMNS, name=lambda item: item.request_id, nothing=_NOTHING
    )
    write_listing(listing, output)


@command.command("cancel")
@click.argument("request_ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def cancel(invocation: Invocation, request_ids: tuple[str, ...]) -> None:
    """Stop requests; each answer ends with what it has so far."""
    first_failure: TeengineError | None = None
    with invocation.client() as client:
        for request_id in request_ids:
            try:
                client.cancel(request_id)
                click.echo(f"cancelled {request_id}")
            except TeengineError as error:
                first_failure = first_failure or error
    if first_failure is not None:
        raise first_failure
