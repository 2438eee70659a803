import pytest

from tests.unit.service.segments.folding import Folded, folded

CALL = '{"name": "weather", "parameters": {"city": "Köln"}}'
TOLD = ("weather", '{"city": "Köln"}')


@pytest.mark.parametrize("answer", [CALL, f"\n {CALL}\n", f"<|python_tag|>{CALL}", f'{{"type": "function", {CALL[1:]}'])
def test_an_answer_that_is_a_call_is_a_call(answer: str):
    assert folded("llama", answer) == Folded("", "", (TOLD,))


def test_several_calls_have_a_semicolon_between_them():
    assert folded("llama", f"{CALL}; {CALL};\n{CALL}") == Folded("", "", (TOLD, TOLD, TOLD))


def test_text_after_a_call_stays():
    assert folded("llama", f"{CALL} as you wished") == Folded(" as you wished", "", (TOLD,))


def test_a_call_may_come_after_text_with_the_tag_only():
    assert folded("llama", f"Look: <|python_tag|>{CALL}") == Folded("Look: ", "", (TOLD,))
    assert folded("llama", f"Look: {CALL}") == Folded(f"Look: {CALL}")


@pytest.mark.parametrize(
    "answer",
    [
        "Hello {name}",
        '{"answer": 42}',
        '{"name": "Ada", "born": 1815}',
        '{"name": "Ada", "parameters": 3}',
        '{"answer": "<|python_tag',
        '{1: "name"}',
        "{",
        "",
        " ",
        "<|python_tag|>print(1)",
        '<|python_tag|>{"name": "f"}',
        '{"name": "f", "parameters": {',
    ],
)
def test_what_is_no_call_is_text_to_the_last_character(answer: str):
    assert folded("llama", answer) == Folded(answer)


def test_an_answer_that_is_json_of_its_own_does_not_wait_for_its_end():
    from teengined.service.segments import open_fold

    assert open_fold("llama", "r1", "").feed('{"answer": "for').text == '{"answer": "for'
