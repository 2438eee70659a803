"""Precisions chosen by measured error within a number of bytes, by the program that the command line starts."""

import json
from pathlib import Path

import pytest

from teengined.modelpack.manifest import read_manifest
from tests.fakes.conversion_process import run_program
from tests.fakes.tiny_models import build_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog, and then does so again, since nobody told it to stop. " * 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("budget")
    (directory / "text.txt").write_text(TEXT)
    build_tiny_model("qwen3_moe", directory / "model", num_hidden_layers=2)
    for precision in ("int4,embedding=int4,head=int4", "int8", "fp32"):
        name = precision.partition(",")[0]
        assert (
            run_program(
                "convert", directory / "model", "--store", directory, "--name", name, "--precision", precision
            ).status
            == 0
        )
    return directory


def convert(place: Path, budget: object, *more: object):
    arguments = ("--store", place, "--name", "chosen", "--budget", budget, "--calibration", place / "text.txt")
    return run_program("convert", place / "model", *map(str, arguments), *map(str, more))


@pytest.mark.parametrize("share", [0.3, 0.6, 2.0])
def test_the_package_takes_no_more_than_its_budget_and_says_what_it_chose(share: float, place: Path) -> None:
    least, most = (read_manifest(place / name).size_bytes for name in ("int4", "fp32"))
    budget = int(least + share * (most - least)) + 80_000  # headers and alignment are counted generously

    outcome = convert(place, budget)

    assert outcome.status == 0
    manifest = read_manifest(place / "chosen")
    assert manifest.size_bytes <= budget
    table = json.loads((place / "chosen" / "precision.json").read_text())["parts"]
    assert outcome.last["precisions"] == table
    parts = {row["part"]: row for row in table}
    assert {"embedding", "head", "layers.0.attention", "layers.1.mlp.experts"} <= set(parts)
    for row in table:
        errors = {name: option["error"] for name, option in row["options"].items()}
        assert errors["fp32"] <= errors["int8"] <= errors["int4"]
        assert row["error"] == errors[row["precision"]]
    expert = next(unit for unit in manifest.units if unit.id == "layer.1.expert.0")
    assert expert.precision == parts["layers.1.mlp.experts"]["precision"]
    if share == 2.0:
        assert {row["precision"] for row in table} == {"fp32"}


@pytest.mark.parametrize(
    ("budget", "more", "message"),
    [
        ("1kB", (), "at the least"),
        ("lots", (), "is not a size"),
        ("1MB", ("--precision", "int8"), "cannot be named beside it"),
        ("1MB", ("--calibration", "/no/such/text"), "cannot be read"),
    ],
)
def test_what_cannot_be_chosen_is_refused(budget: str, more: tuple[str, ...], message: str, place: Path) -> None:
    outcome = convert(place, budget, *more)

    assert outcome.status != 0
    assert message in outcome.last["message"]


def test_a_budget_needs_a_text_and_a_text_a_budget(place: Path) -> None:
    for arguments in (("--budget", "1MB"), ("--calibration", str(place / "text.txt"))):
        outcome = run_program("convert", place / "model", "--store", place, "--name", "none", *arguments)
        assert outcome.last["code"] == "invalid_request"
        assert outcome.last["hint"]
