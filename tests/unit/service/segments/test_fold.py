"""What every format keeps, on answers that are made of its own markers in any order and cut anywhere."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.service.segments import open_fold
from tests.unit.service.segments.folding import cut, fold

FORMATS = ("hermes", "llama", "mistral", "deepseek", "harmony", None)
PROMPTS = ("", "assistant\n<think>\n", "[THINK]", "<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>")
WORDS = (
    "one ",
    "zwei",
    " 三",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    ":",
    ",",
    "\n",
    " ",
    ";",
    "<",
    "<|",
    "```",
    "name",
    "x" * 40,
)
JSON = (
    '{"name": "f", "arguments": {"a": "<b>"}}',
    '{"name": "f", "parameters": {"a": [1, {}]}}',
    '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": "]"}}]',
    '{"city": "Köln"}',
    '{"name": "f", "arguments": [1]}',
    '{"a": 1,}',
)
MARKERS = {
    "hermes": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    "llama": ("<|python_tag|>", ";"),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "weather"),
    "deepseek": (
        "<think>",
        "</think>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "function<｜tool▁sep｜>weather\n```json\n",
        "\n```",
    ),
    "harmony": (
        "<|start|>",
        "assistant",
        "<|channel|>",
        "analysis",
        "final",
        "commentary to=functions.weather ",
        "<|constrain|>json",
        "<|message|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
    ),
    None: ("<think>",),
}


def answers(name: str | None) -> st.SearchStrategy[str]:
    pieces = st.sampled_from((*MARKERS[name], *MARKERS[name], *JSON, *WORDS)) | st.text(max_size=3)
    return st.lists(pieces, max_size=14).map("".join)


@pytest.mark.parametrize("name", FORMATS)
@given(st.data())
def test_the_sum_is_the_same_however_the_answer_is_cut(name: str | None, data: st.DataObject):
    answer = data.draw(answers(name))
    prompt = data.draw(st.sampled_from(PROMPTS))
    places = data.draw(st.lists(st.integers(min_value=0, max_value=400), max_size=20))

    whole = fold(open_fold(name, "r1", prompt), [answer])

    assert fold(open_fold(name, "r1", prompt), cut(answer, places)) == whole
    assert fold(open_fold(name, "r1", prompt), answer) == whole


@pytest.mark.parametrize("name", FORMATS)
@given(st.data())
def test_no_word_is_lost(name: str | None, data: st.DataObject):
    marked = st.sampled_from(MARKERS[name]) | st.sampled_from(JSON)
    pieces = data.draw(st.lists(marked | st.just("#"), max_size=14))
    between = data.draw(st.sampled_from(["", " "]))
    numbers = itertools.count()
    answer = between.join(f"#{next(numbers)}#" if piece == "#" else piece for piece in pieces)

    told = fold(open_fold(name, "r1", ""), answer)

    everything = " ".join([told.text, told.reasoning, *(part for call in told.calls for part in call)])
    assert sorted(re.findall(r"#\d+#", answer)) == sorted(re.findall(r"#\d+#", everything))


@pytest.mark.parametrize("name", FORMATS)
@given(st.text())
def test_an_answer_without_markers_is_text(name: str | None, answer: str):
    told = fold(open_fold(name, "r1", ""), answer)

    assert (told.text, told.reasoning, told.calls) == (answer, "", ())


@pytest.mark.parametrize("name", FORMATS)
def test_text_does_not_wait_for_its_end(name: str | None):
    assert open_fold(name, "r1", "").feed("Once upon a time").text == "Once upon a time"


# What a fold would look at again and again if it kept it waiting: the work of a piece is the piece and what waited.
HOSTILE = [
    pytest.param("hermes", '<tool_call>{"', id="calls in strings"),
    pytest.param("hermes", '<tool_call>{"a": "\\"', id="calls after quotes"),
    pytest.param("hermes", "<tool_call> ", id="calls without anything"),
    pytest.param("hermes", "<tool_cal", id="beginnings"),
    pytest.param("hermes", '<tool_call>{"name":"f"} \n', id="calls that stay open"),
    pytest.param("llama", "{ ", id="brackets"),
    pytest.param("llama", ' {"name"', id="first keys"),
    pytest.param("llama", "<|python_tag|>{", id="tags"),
    pytest.param("mistral", "[TOOL_CALLS]", id="markers"),
    pytest.param("mistral", "[TOOL_CALLS]a", id="names"),
    pytest.param("deepseek", "<｜tool▁call▁begin｜>a", id="heads"),
    pytest.param("deepseek", "<｜tool▁calls▁begin｜>\n", id="groups"),
    pytest.param("harmony", "<|channel|>a", id="channels"),
    pytest.param("harmony", "<|channel|>a to=b<|message|>c", id="messages"),
]


LONGEST_WAIT = 600


@pytest.mark.parametrize(("name", "unit"), HOSTILE)
def test_a_hostile_answer_never_keeps_more_waiting_than_a_header(name: str, unit: str):
    answer = unit * (30_000 // len(unit))
    segments = open_fold(name, "r1", "")

    for sign in answer:
        segments.feed(sign)
        assert len(segments._rest) <= LONGEST_WAIT

    assert fold(open_fold(name, "r1", ""), answer) == fold(open_fold(name, "r1", ""), [answer])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sign", [" ", "\n", "{", "<", '"'])
def test_one_character_without_end_is_text(name: str | None, sign: str):
    answer = "{" + sign * 30_000

    assert fold(open_fold(name, "r1", ""), answer).text == answer


def test_ids_are_the_same_for_the_same_request_and_differ_for_others():
    answer = '<tool_call>{"name": "f"}</tool_call>' * 2

    def ids(request_id: str) -> list[str]:
        return [call.id for call in open_fold("hermes", request_id, "").feed(answer).tool_calls]

    assert ids("r1") == ids("r1")
    assert len({*ids("r1"), *ids("r2")}) == 4
    assert all(re.fullmatch("[A-Za-z0-9]{9}", name) for name in ids("r1"))
