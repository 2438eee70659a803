"""What goes to standard output: a table for people, or one stable JSON form for programs.

JSON is `{"schema": "teengine.ps/v1", "items": [...]}` with snake_case keys and raw bytes and seconds; fields are only
ever added within `v1`. Tables have no borders, UPPERCASE headers and two spaces between columns.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import click

from teengined.core.records import to_mapping

__all__ = [
    "Column",
    "Listing",
    "OutputFormat",
    "output_options",
    "table_lines",
    "write_event",
    "write_json",
    "write_listing",
]

T = TypeVar("T")
_GUTTER = "  "
_EMPTY = "-"


class OutputFormat(StrEnum):
    """How a listing is written."""

    TABLE = "table"
    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[T]):
    """One column of a table."""

    header: str
    cell: Callable[[T], str]
    right: bool = False
    """Align numbers on their last digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[T]):
    """Rows of one kind, with everything that any format needs."""

    kind: str
    """The middle of the schema's name: `ps` for `teengine.ps/v1`."""
    items: Sequence[T]
    columns: Sequence[Column[T]]
    name: Callable[[T], str]
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further top-level fields of the JSON form."""
    nothing: str = ""
    """What to tell people in the place of a table without rows."""


def table_lines(columns: Sequence[Column[T]], items: Iterable[T]) -> list[str]:
    """Return the table's lines, header first, without trailing blanks."""
    cells = [[column.header for column in columns]]
    cells += [[column.cell(item) or _EMPTY for column in columns] for item in items]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return [_line(row, widths, columns) for row in cells]


def _line(row: Sequence[str], widths: Sequence[int], columns: Sequence[Column[T]]) -> str:
    padded = (
        text.rjust(width) if column.right else text.ljust(width)
        for text, width, column in zip(row, widths, columns, strict=True)
    )
    return _GUTTER.join(padded).rstrip()


def write_listing(listing: Listing[T], output: OutputFormat) -> None:
    """Write rows to standard output."""
    if output is OutputFormat.JSON:
        write_json(listing.kind, {"items": [to_mapping(item) for item in listing.items], **listing.extra})
        return
    if output is OutputFormat.JSONL:
        lines = [json.dumps(to_mapping(item)) for item in listing.items]
    elif output is OutputFormat.NAME:
        lines = [listing.name(item) for item in listing.items]
    elif listing.nothing and not listing.items:
        click.echo(listing.nothing, err=True)
        return
    else:
        lines = table_lines(listing.columns, listing.items)
    sys.stdout.writelines(f"{line}\n" for line in lines)


def write_json(kind: str, fields: Any) -> None:
    """Write one object with its schema first. `fields` is a record or a mapping."""
    json.dump({"schema": f"teengine.{kind}/v1", **to_mapping(fields)}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def write_event(event: str, fields: Any) -> None:
    """Write one object on one line, as the last of a stream of progress objects."""
    sys.stdout.write(json.dumps({"event": event, **to_mapping(fields)}) + "\n")


def output_options(*formats: OutputFormat) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `-o`, `--json` and, where names are offered, `-q`; the verb gets `output`, the first format by default."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options = [
            click.option(
                "-o",
                "--output",
                "output",
                type=click.Choice([str(choice) for choice in formats]),
                callback=_chosen(formats[0]),
                help=f"Form of the answer; default {formats[0]}.",
            )
        ]
        if OutputFormat.JSON in formats:
            options.append(_shorthand(["--json"], OutputFormat.JSON, "Same as -o json."))
        if OutputFormat.NAME in formats:
            options.append(_shorthand(["-q", "--quiet"], OutputFormat.NAME, "Names only."))
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SHORTHAND_KEY = "teengined.cli.output"


def _shorthand(names: list[str], output: OutputFormat, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.meta[_SHORTHAND_KEY] = output

    # Eager, so that it is known when `-o` settles the format.
    return click.option(*names, is_flag=True, is_eager=True, expose_value=False, callback=remember, help=text)


def _chosen(default: OutputFormat) -> Callable[[click.Context, click.Parameter, str | None], OutputFormat]:
    def settle(context: click.Context, _parameter: click.Parameter, value: str | None) -> OutputFormat:
        return OutputFormat(value) if value else context.meta.get(_SHORTHAND_KEY, default)

    return settle
