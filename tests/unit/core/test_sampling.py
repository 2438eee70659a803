"""Parameters that no sampler can honour do not exist: each is refused with its name, its value and what it may be."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.records import RecordError, from_mapping, to_mapping
from teengined.core.sampling import (
    MAX_CHOICES,
    MAX_GRAMMAR_CHARACTERS,
    MAX_GRAMMAR_CHOICES,
    MAX_LISTED_IDS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    Grammar,
    GrammarKind,
    SamplingParams,
)

# Field -> values just inside, values just outside, and the words that say the range.
RANGES: dict[str, tuple[list[float], list[float], str]] = {
    "max_tokens": ([1, 2**31], [0, -1, 2**31 + 1], "between 1 and 2147483648"),
    "min_tokens": ([0, 256], [-1, 257], "between 0 and 256"),
    "temperature": ([0.0, 100.0], [-0.001, 100.001], "between 0 and 100"),
    "top_k": ([0, 2**31], [-1, 2**31 + 1], "between 0 and 2147483648"),
    "top_p": ([1e-9, 1.0], [0.0, -0.5, 1.001], "above 0 and at most 1"),
    "min_p": ([0.0, 1.0], [-0.001, 1.001], "between 0 and 1"),
    "typical_p": ([1e-9, 1.0], [0.0, -0.5, 1.001], "above 0 and at most 1"),
    "repetition_penalty": ([0.01, 10.0], [0.0, -1.0, 0.009, 10.001], "between 0.01 and 10"),
    "presence_penalty": ([-2.0, 2.0], [-2.001, 2.001], "between -2 and 2"),
    "frequency_penalty": ([-2.0, 2.0], [-2.001, 2.001], "between -2 and 2"),
    "num_choices": ([1, MAX_CHOICES], [0, -1, MAX_CHOICES + 1], "between 1 and 128"),
    "logprobs": ([0, 20], [-1, 21], "between 0 and 20"),
    "prompt_logprobs": ([0, 20], [-1, 21], "between 0 and 20"),
    "seed": ([0, 2**64 - 1], [-1, 2**64], "between 0 and 2^64 - 1"),
}
INSIDE = [(name, value) for name, (inside, _, _) in RANGES.items() for value in inside]
OUTSIDE = [(name, value, words) for name, (_, outside, words) in RANGES.items() for value in outside]
FLOATS = [name for name, (inside, _, _) in RANGES.items() if isinstance(inside[0], float)]
INTEGERS = [name for name, (inside, _, _) in RANGES.items() if isinstance(inside[0], int)]
ID_LISTS = ("allowed_token_ids", "banned_token_ids", "stop_token_ids")


def made(**values: Any) -> SamplingParams:
    return SamplingParams(**values)


def test_every_number_has_its_range() -> None:
    hints = {field.name: field.type for field in dataclasses.fields(SamplingParams)}

    assert set(RANGES) == {name for name, hint in hints.items() if hint in (int, float, int | None)}


@pytest.mark.parametrize(("name", "value"), INSIDE)
def test_the_ends_of_a_range_are_inside(name: str, value: float) -> None:
    assert getattr(made(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value", "words"), OUTSIDE)
def test_outside_a_range_name_range_and_value_are_told(name: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be ") as refused:
        made(**{name: value})

    assert words in str(refused.value)
    assert str(refused.value).endswith(f"got {value}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_finite_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .* got {value}$"):
        made(**{name: value})


@pytest.mark.parametrize("value", ["1", [1], {"a": 1}, True, b"1"])
@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_a_wrong_type_from_outside_is_told_with_its_field(name: str, value: Any) -> None:
    with pytest.raises(RecordError) as refused:
        from_mapping(SamplingParams, {name: value})

    assert refused.value.path == name
    assert "expected" in refused.value.problem


@pytest.mark.parametrize("name", INTEGERS)
def test_a_fraction_is_no_count(name: str) -> None:
    with pytest.raises(RecordError, match="expected int, got float"):
        from_mapping(SamplingParams, {name: 1.0})


@pytest.mark.parametrize("name", [name for name in [*FLOATS, *INTEGERS] if "logprobs" not in name])
def test_nothing_is_no_number(name: str) -> None:
    with pytest.raises(RecordError):
        from_mapping(SamplingParams, {name: None})


def test_what_is_out_of_range_from_outside_keeps_its_words() -> None:
    with pytest.raises(RecordError, match="top_p must be above 0 and at most 1, got 7"):
        from_mapping(SamplingParams, {"top_p": 7})


@pytest.mark.parametrize("name", ID_LISTS)
def test_a_list_of_ids_has_a_bound(name: str) -> None:
    made(**{name: tuple(range(MAX_LISTED_IDS))})

    with pytest.raises(ValueError, match=f"^{name} must have at most {MAX_LISTED_IDS} entries, got 1025$"):
        made(**{name: tuple(range(MAX_LISTED_IDS + 1))})


@pytest.mark.parametrize("token_id", [-1, 2**31])
@pytest.mark.parametrize("name", ID_LISTS)
def test_an_id_that_cannot_be_one_is_told_with_its_place(name: str, token_id: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\[1\] must be between 0 and 2147483647, got {token_id}$"):
        made(**{name: (5, token_id)})


def test_biases_are_bounded_in_number_id_and_size() -> None:
    made(logit_bias=((0, 100.0), (5, -100.0)))
    with pytest.raises(ValueError, match=r"^logit_bias must have at most 1024 entries, got 1025$"):
        made(logit_bias=tuple((token_id, 1.0) for token_id in range(MAX_LISTED_IDS + 1)))
    with pytest.raises(ValueError, match=r"^token ids of logit_bias must be between 0 and 2147483647, got -4$"):
        made(logit_bias=((-4, 1.0),))
    for bias in (100.5, -100.5, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"^logit_bias of token 7 must be between -100 and 100, got {bias}$"):
            made(logit_bias=((7, bias),))


@pytest.mark.parametrize("value", [{"7": 1.0}, [[7]], [[7, 1.0, 2]], [["7", 1.0]], [[7, "1"]], 7])
def test_biases_of_another_shape_are_refused(value: Any) -> None:
    with pytest.raises(RecordError) as refused:
        from_mapping(SamplingParams, {"logit_bias": value})

    assert refused.value.path.startswith("logit_bias")


def test_stop_texts_are_bounded_in_number_and_length() -> None:
    made(stop=("x" * MAX_STOP_CHARACTERS,) * MAX_STOPS)
    with pytest.raises(ValueError, match=r"^stop must have at most 16 entries, got 17$"):
        made(stop=("x",) * (MAX_STOPS + 1))
    with pytest.raises(ValueError, match=r"^length of stop\[1\] must be between 1 and 256, got 0$"):
        made(stop=("x", ""))
    with pytest.raises(ValueError, match=r"^length of stop\[0\] must be between 1 and 256, got 257$"):
        made(stop=("x" * (MAX_STOP_CHARACTERS + 1),))


@pytest.mark.parametrize("value", ["stop", [1], [None], [["a"]]])
def test_stop_is_a_list_of_texts(value: Any) -> None:
    with pytest.raises(RecordError) as refused:
        from_mapping(SamplingParams, {"stop": value})

    assert refused.value.path.startswith("stop")


@pytest.mark.parametrize("kind", [GrammarKind.JSON_SCHEMA, GrammarKind.REGEX, GrammarKind.LARK])
def test_a_grammar_that_is_written_needs_its_text_and_no_choices(kind: GrammarKind) -> None:
    Grammar(kind=kind, text="x")
    with pytest.raises(ValueError, match=f"of kind {kind.value} needs a text"):
        Grammar(kind=kind)
    with pytest.raises(ValueError, match=f"of kind {kind.value} takes no choices"):
        Grammar(kind=kind, text="x", choices=("a",))


def test_choices_are_given_and_not_empty() -> None:
    Grammar(kind=GrammarKind.CHOICE, choices=("a", "b"))
    with pytest.raises(ValueError, match="of kind choice needs choices"):
        Grammar(kind=GrammarKind.CHOICE)
    with pytest.raises(ValueError, match="of kind choice takes no text"):
        Grammar(kind=GrammarKind.CHOICE, choices=("a",), text="x")
    with pytest.raises(ValueError, match=r"choices\[1\] of the grammar is empty"):
        Grammar(kind=GrammarKind.CHOICE, choices=("a", ""))


def test_a_json_object_takes_neither() -> None:
    Grammar(kind=GrammarKind.JSON_OBJECT)
    with pytest.raises(ValueError, match="of kind json_object takes no text"):
        Grammar(kind=GrammarKind.JSON_OBJECT, text="{}")
    with pytest.raises(ValueError, match="of kind json_object takes no choices"):
        Grammar(kind=GrammarKind.JSON_OBJECT, choices=("a",))


def test_a_grammar_has_a_bound() -> None:
    Grammar(kind=GrammarKind.REGEX, text="x" * MAX_GRAMMAR_CHARACTERS)
    with pytest.raises(ValueError, match="at most 65536 characters, got 65537"):
        Grammar(kind=GrammarKind.REGEX, text="x" * (MAX_GRAMMAR_CHARACTERS + 1))
    with pytest.raises(ValueError, match="at most 65536 characters, got 65538"):
        Grammar(kind=GrammarKind.CHOICE, choices=("x" * (MAX_GRAMMAR_CHARACTERS // 2 + 1),) * 2)
    with pytest.raises(ValueError, match="at most 1024 choices, got 1025"):
        Grammar(kind=GrammarKind.CHOICE, choices=("x",) * (MAX_GRAMMAR_CHOICES + 1))


@pytest.mark.parametrize(
    "value", [{}, {"kind": "gbnf", "text": "x"}, {"kind": "regex", "text": 3}, {"kind": "regex", "pattern": "x"}, "x"]
)
def test_a_malformed_grammar_from_outside_is_told_with_its_field(value: Any) -> None:
    with pytest.raises(RecordError) as refused:
        from_mapping(SamplingParams, {"grammar": value})

    assert refused.value.path.startswith("grammar")


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 100),
            "top_p": st.floats(0.001, 1),
            "top_k": st.integers(0, 1000),
            "logit_bias": st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100)), max_size=5).map(tuple),
            "stop": st.lists(st.text(min_size=1, max_size=9), max_size=4).map(tuple),
            "grammar": st.just(Grammar(kind=GrammarKind.REGEX, text="a")),
            "seed": st.integers(0, 2**64 - 1),
        },
    )
)
def test_valid_parameters_survive_the_way_out_and_back(values: dict[str, Any]) -> None:
    params = made(**values)

    assert from_mapping(SamplingParams, to_mapping(params)) == params


@pytest.mark.parametrize(
    ("values", "uses"),
    [
        ({}, False),
        ({"temperature": 1.0, "top_k": 4, "logit_bias": ((1, 1.0),)}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"grammar": Grammar(kind=GrammarKind.JSON_OBJECT)}, True),
    ],
)
def test_only_penalties_and_grammars_need_the_tokens_before(values: dict[str, Any], uses: bool) -> None:
    assert made(**values).uses_history is uses
