"""Frozen dataclasses to plain mappings and back, strictly."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core import records
from teengined.core.records import RecordError, from_mapping, to_mapping

Id = NewType("Id", str)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: int
    y: float = 0.5

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    id: Id
    flag: bool = False
    raw: bytes = b""
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    maybe: int | None = None
    either: int | str = 0
    points: tuple[Point, ...] = ()
    pair: tuple[int, str] = (1, "one")
    table: Mapping[str, Point] = field(default_factory=dict[str, Point])


points = st.builds(Point, x=st.integers(min_value=0), y=st.floats(allow_nan=False))
everything = st.builds(
    Everything,
    id=st.text().map(Id),
    flag=st.booleans(),
    raw=st.binary(),
    colour=st.sampled_from(Colour),
    mode=st.sampled_from(["a", "b"]),
    maybe=st.none() | st.integers(),
    either=st.integers() | st.text(),
    points=st.lists(points).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    table=st.dictionaries(st.text(), points),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


def refusal(value: Any, record: type = Everything) -> RecordError:
    with pytest.raises(RecordError) as caught:
        from_mapping(record, value)
    return caught.value


@given(everything)
def test_any_record_comes_back_from_its_mapping(record: Everything) -> None:
    assert from_mapping(Everything, to_mapping(record)) == record


@given(st.dictionaries(st.sampled_from([*Everything.__dataclass_fields__, "other"]), plain))
def test_any_mapping_is_a_record_or_a_record_error(value: dict[str, Any]) -> None:
    with contextlib.suppress(RecordError):
        assert isinstance(from_mapping(Everything, value), Everything)


def test_mapping_of_a_record_holds_plain_values_only() -> None:
    mapping = to_mapping(Everything(id=Id("a"), colour=Colour.BLUE, points=(Point(x=1),)))

    assert type(mapping["colour"]) is str
    assert mapping["points"] == [{"x": 1, "y": 0.5}]


def test_unknown_key_is_refused_with_the_nearest() -> None:
    assert refusal({"id": "a", "colur": "red"}).problem == "unknown key 'colur'; did you mean 'colour'?"


def test_missing_key_is_named() -> None:
    assert refusal({}).problem == "missing id"


def test_path_leads_to_the_inner_value() -> None:
    error = refusal({"id": "a", "points": [{"x": 1}, {"x": "2"}]})

    assert (error.path, error.problem) == ("points[1].x", "expected int, got str")


def test_path_leads_into_tables() -> None:
    assert refusal({"id": "a", "table": {"home": {}}}).path == "table.home"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flag", 1),
        ("maybe", True),
        ("maybe", 1.0),
        ("raw", "text"),
        ("id", b"bytes"),
        ("colour", "green"),
        ("colour", ["red"]),
        ("mode", "c"),
        ("either", None),
        ("points", "abc"),
        ("pair", [1]),
        ("pair", ["one", 1]),
        ("table", [1]),
        ("table", {1: {"x": 1}}),
    ],
)
def test_wrong_type_is_refused_at_its_key(key: str, value: Any) -> None:
    assert refusal({"id": "a", key: value}).path.startswith(key)


def test_whole_number_serves_as_a_float() -> None:
    point = from_mapping(Point, {"x": 1, "y": 2})

    assert isinstance(point.y, float)


def test_check_of_the_record_itself_becomes_a_record_error() -> None:
    assert refusal({"x": -1}, Point).problem == "x must not be negative"


def test_what_is_no_table_is_refused() -> None:
    assert refusal([1, 2]).problem == "expected a table, got list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    values: tuple[int, ...]


def test_a_wrong_item_among_many_costs_one_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    convert = records._convert

    def counting(hint: Any, value: Any, path: str) -> Any:
        converted.append(path)
        return convert(hint, value, path)

    monkeypatch.setattr(records, "_convert", counting)

    assert refusal({"values": [1] * 10_000 + ["2"]}, Numbers).path == "values[10000]"
    assert converted == ["values", "values[10000]"]


@pytest.mark.parametrize("value", [{"x": 1, "k" * 1_000_000: 2}, {"x": 1, "table": {"k" * 1_000_000: "text"}}])
def test_megabytes_of_a_key_are_not_told(value: dict[str, Any]):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Small:
        x: int
        table: Mapping[str, int] = field(default_factory=dict[str, int])

    with pytest.raises(RecordError) as caught:
        from_mapping(Small, value)

    assert len(str(caught.value)) < 200
