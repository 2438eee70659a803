import pytest

from tests.unit.service.segments.folding import Folded, folded

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TOLD = ("weather", '{"city": "Köln"}')


def test_reasoning_comes_before_the_text():
    assert folded("hermes", "<think>\nhm\n</think>\n\nYes.") == Folded("Yes.", "hm\n")


def test_reasoning_that_the_prompt_began_has_only_its_end():
    assert folded("hermes", "\nhm</think>Yes.", "<|im_start|>assistant\n<think>\n") == Folded("Yes.", "hm")


def test_reasoning_that_the_prompt_closed_is_over():
    assert folded("hermes", "Yes.", "<think>\n\n</think>\n\n") == Folded("Yes.")


def test_an_answer_that_ends_in_its_reasoning_has_no_text():
    assert folded("hermes", "<think>hm </thi") == Folded("", "hm </thi")


def test_markers_that_a_model_writes_about_are_text():
    answer = "Put <think> and </think> around it, a <tool_call> and a </tool_call>."

    assert folded("hermes", answer) == Folded(answer)


def test_text_before_and_after_a_call_stays():
    assert folded("hermes", f"Let me see.\n{CALL}\n\nDone") == Folded("Let me see.\nDone", "", (TOLD,))


def test_several_calls_are_counted():
    assert folded("hermes", f"<think>two</think>\n{CALL}\n{CALL}") == Folded("", "two", (TOLD, TOLD))


def test_a_call_needs_no_closing_marker():
    assert folded("hermes", CALL.removesuffix("</tool_call>") + "ok") == Folded("ok", "", (TOLD,))


def test_markers_inside_of_arguments_are_arguments():
    arguments = '{"text": "</tool_call><tool_call>{\\"}"}'

    assert folded("hermes", f'<tool_call>{{"name":"f","arguments":{arguments}}}</tool_call>').calls == (
        ("f", arguments),
    )


def test_arguments_in_a_string_are_taken_out_of_it():
    answer = '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>'

    assert folded("hermes", answer).calls == (("f", '{"x": 1}'),)


def test_a_character_of_two_halves_is_one_and_a_half_one_stays_as_it_was_written():
    answer = '<tool_call>{"name": "\\ud83d\\ude00", "arguments": {"x": "\\ud800"}}</tool_call>'

    assert folded("hermes", answer).calls == (("😀", '{"x": "\\ud800"}'),)


def test_a_call_without_arguments_has_an_empty_object():
    assert folded("hermes", '<tool_call>{"name": "now"}</tool_call>').calls == (("now", "{}"),)


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>",
        "<tool_call>\n\n",
        "<tool_call>no json</tool_call>",
        "<tool_call>{}</tool_call> more",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {,}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x = 1"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": "never ends',
        '<tool_call>["name"]</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"\\udc00\\"}"}</tool_call>',
        "<tool_cal",
        "</tool_call>",
        "<tool_call>" + "{" * 10_000,
    ],
)
def test_what_is_no_call_is_text_to_the_last_character(answer: str):
    assert folded("hermes", answer) == Folded(answer)


def test_a_call_after_one_that_broke_off_is_a_call():
    broken = '<tool_call>{"name": "f", '

    assert folded("hermes", broken + CALL) == Folded(broken, "", (TOLD,))
