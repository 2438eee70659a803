import json
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from teengined.cli.output import Column, Listing, OutputFormat, output_options, table_lines, write_listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    name: str
    size_bytes: int


DISKS = (Disk(name="nvme0", size_bytes=2_000_000), Disk(name="a", size_bytes=7))
COLUMNS: tuple[Column[Disk], ...] = (
    Column(header="NAME", cell=lambda disk: disk.name),
    Column(header="SIZE", cell=lambda disk: str(disk.size_bytes), right=True),
    Column(header="NOTE", cell=lambda disk: ""),
)
LISTING = Listing(kind="disks", items=DISKS, columns=COLUMNS, name=lambda disk: disk.name)


def chosen_by(*arguments: str) -> str:
    @click.command()
    @output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.NAME)
    def command(output: OutputFormat) -> None:
        click.echo(output.value)

    return CliRunner().invoke(command, list(arguments)).output.strip()


def test_table_has_upper_case_headers_two_spaces_and_a_dash_for_nothing():
    assert table_lines(COLUMNS, DISKS) == [
        "NAME      SIZE  NOTE",
        "nvme0  2000000  -",
        "a            7  -",
    ]


def test_table_without_items_is_its_header():
    assert table_lines(COLUMNS, ()) == ["NAME  SIZE  NOTE"]


def test_json_has_a_schema_and_raw_numbers(capsys: pytest.CaptureFixture[str]):
    write_listing(LISTING, OutputFormat.JSON)

    written = json.loads(capsys.readouterr().out)

    assert written["schema"] == "teengine.disks/v1"
    assert written["items"][0] == {"name": "nvme0", "size_bytes": 2_000_000}


def test_jsonl_is_one_object_a_line(capsys: pytest.CaptureFixture[str]):
    write_listing(LISTING, OutputFormat.JSONL)

    lines = capsys.readouterr().out.splitlines()

    assert [json.loads(line)["name"] for line in lines] == ["nvme0", "a"]


def test_names_are_all_that_quiet_writes(capsys: pytest.CaptureFixture[str]):
    write_listing(LISTING, OutputFormat.NAME)

    assert capsys.readouterr().out == "nvme0\na\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "table"),
        (("-o", "json"), "json"),
        (("--json",), "json"),
        (("-q",), "name"),
        (("--json", "-o", "table"), "table"),
    ],
)
def test_every_spelling_of_a_format_is_understood(arguments: tuple[str, ...], expected: str):
    assert chosen_by(*arguments) == expected


def test_a_format_the_verb_lacks_is_refused():
    assert "'jsonl' is not one of" in chosen_by("-o", "jsonl")
