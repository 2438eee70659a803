"""`teengine config`: every setting with its value and origin, and whether a file is right before it is used."""

from pathlib import Path

import click

from teengined.cli.invocation import Invocation, ListGroup
from teengined.cli.output import Column, Listing, OutputFormat, output_options, write_listing
from teengined.core.errors import DaemonUnreachable
from teengined.core.nearest import nearest
from teengined.protocol.messages import ConfigItem

__all__ = ["command"]

COLUMNS: tuple[Column[ConfigItem], ...] = (
    Column(header="KEY", cell=lambda item: item.key),
    Column(header="VALUE", cell=lambda item: item.value),
    Column(header="ORIGIN", cell=lambda item: item.origin),
)
DOCUMENTED: tuple[Column[ConfigItem], ...] = (*COLUMNS, Column(header="MEANING", cell=lambda item: item.doc))


class ConfigGroup(ListGroup):
    """Its list is called `show`."""

    default_verb = "show"


@click.group("config", cls=ConfigGroup, short_help="Show and check the configuration.")
def command() -> None:
    """Show and check the daemon's configuration."""


@command.command("show")
@click.argument("prefix", default="")
@click.option("--files", is_flag=True, help="Read files and environment here instead of asking the daemon.")
@click.option("--docs", is_flag=True, help="Add what each setting means and why its default is what it is.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL, OutputFormat.NAME)
@click.pass_obj
def show(invocation: Invocation, prefix: str, files: bool, docs: bool, output: OutputFormat) -> None:
    """Show each setting whose key begins with PREFIX, its value, and where the value came from.

    Asks the running daemon; without one, reads what a daemon started here would read.
    """
    items = _from_files() if files else _running_or_files(invocation)
    chosen = [item for item in items if item.key.startswith(prefix)]
    columns = DOCUMENTED if docs else COLUMNS
    near = nearest(prefix, [item.key for item in items])
    nothing = f"no setting begins with {prefix!r}" + (f"; did you mean {near[0]}?" if near else "")
    listing = Listing(kind="config", items=chosen, columns=columns, name=lambda item: item.key, nothing=nothing)
    write_listing(listing, output)


def _running_or_files(invocation: Invocation) -> tuple[ConfigItem, ...]:
    try:
        with invocation.client() as client:
            return client.config().items
    except DaemonUnreachable:
        click.echo("no daemon is running; this is what one started here would use", err=True)
        return _from_files()


def _from_files() -> tuple[ConfigItem, ...]:
    from teengined.service.config import ConfigSources, load_config

    return load_config(ConfigSources()).items


@command.command("validate")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def validate(file: Path | None) -> None:
    """Check FILE alone, or everything that a daemon started here would read. Exits with 78 where something is wrong."""
    from teengined.service.config import ConfigSources, load_config, validate_file

    if file is not None:
        validate_file(file)
    else:
        load_config(ConfigSources())
    click.echo(f"{file or 'the configuration'} is valid", err=True)


@command.command("path")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.NAME)
def path(output: OutputFormat) -> None:
    """List the files that are read, in order; later ones win."""
    from teengined.service.config import DEFAULT_CONF_DIR, DEFAULT_FILE

    files = (DEFAULT_FILE, *(sorted(DEFAULT_CONF_DIR.glob("*.toml")) or [DEFAULT_CONF_DIR / "*.toml"]))
    columns: tuple[Column[dict[str, str | bool]], ...] = (
        Column(header="PATH", cell=lambda item: str(item["path"])),
        Column(header="THERE", cell=lambda item: "yes" if item["exists"] else "no"),
    )
    items: list[dict[str, str | bool]] = [{"path": str(name), "exists": name.exists()} for name in files]
    write_listing(
        Listing(kind="config-path", items=items, columns=columns, name=lambda item: str(item["path"])), output
    )
