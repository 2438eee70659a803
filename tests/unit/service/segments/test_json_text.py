import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.service.segments.json_text import JsonScan, array_elements, object_members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.text(), st.sampled_from([None, 1]), st.booleans())
def test_the_end_of_an_object_is_found_whatever_follows(value, after: str, indent: int | None, ascii_only: bool):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    scan = JsonScan("{")

    assert scan.feed(text + after, 0) == len(text)
    assert scan.done
    assert scan.text == text


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 1]))
def test_members_are_taken_as_they_were_written(value, indent: int | None):
    members = object_members(json.dumps(value, indent=indent))

    assert members is not None
    assert {key: json.loads(text) for key, text in members.items()} == value


@given(st.lists(VALUES, max_size=4))
def test_elements_are_taken_as_they_were_written(value):
    elements = array_elements(json.dumps(value))

    assert elements is not None
    assert [json.loads(text) for text in elements] == value


@given(st.text(alphabet='{}[]",: \\19ea', max_size=12))
def test_what_python_refuses_is_refused(text: str):
    try:
        value = json.loads(text)
    except ValueError:
        value = None

    assert (object_members(text) is not None) == isinstance(value, dict)
    assert (array_elements(text) is not None) == isinstance(value, list)


@pytest.mark.parametrize("text", ['{"a": NaN}', "{}x", "{" * 2000, '{"a": 1' + "0" * 5000 + "}", '{"a": "\n"}', ""])
def test_what_no_reader_of_json_takes_has_no_members(text: str):
    assert object_members(text) is None


@pytest.mark.parametrize(
    ("text", "taken"), [("x", ""), (" [", " "), ('{"a" <', '{"a" '), ('{"a\nb', '{"a'), ("{" * 200, "{" * 128)]
)
def test_a_scan_fails_at_the_first_character_that_cannot_be(text: str, taken: str):
    scan = JsonScan("{")

    assert scan.feed(text, 0) == len(taken)
    assert scan.failed
    assert scan.text == taken


def test_a_scan_ends_when_it_holds_too_much():
    scan = JsonScan("{")

    scan.feed('{"' + "x" * (1 << 20), 0)

    assert scan.failed
    assert len(scan.text) == 1 << 20


def test_an_object_that_begins_with_another_key_fails_there():
    scan = JsonScan("{", first_keys=frozenset({"name"}))

    assert scan.feed('{ "title": "name"}', 0) == len('{ "title"')
    assert scan.failed
