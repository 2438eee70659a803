import pytest

from teengined.service.segments import open_fold
from tests.unit.service.segments.folding import Folded, folded

PROMPT = "<|start|>user<|message|>hi<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Köln"}<|call|>'
TOLD = ("weather", '{"city": "Köln"}')


def test_channels_are_told_apart():
    answer = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>  Yes.\n<|return|>"

    assert folded("harmony", answer, PROMPT) == Folded("  Yes.\n", "hm")


def test_commentary_without_a_recipient_is_for_the_user():
    assert folded("harmony", "<|channel|>commentary<|message|>I will look.<|end|>", PROMPT) == Folded("I will look.")


def test_a_message_to_a_function_is_a_call():
    answer = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant" + CALL

    assert folded("harmony", answer, PROMPT) == Folded("", "hm", (TOLD,))


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.weather<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.weather<|message|>",
        "<|channel|>analysis to=functions.weather code<|message|>",
    ],
)
def test_a_recipient_may_stand_anywhere_in_the_header(header: str):
    assert folded("harmony", header + '{"city": "Köln"}', PROMPT) == Folded("", "", (TOLD,))


def test_arguments_are_told_as_they_come():
    segments = open_fold("harmony", "r1", PROMPT)
    segments.feed('<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a"')

    (call,) = segments.feed(": 1").tool_calls

    assert (call.index, call.id, call.name, call.arguments) == (0, "", "", ": 1")


def test_an_answer_may_begin_in_the_message_that_the_prompt_opened():
    assert folded("harmony", "hm<|end|>", PROMPT + "<|channel|>analysis<|message|>") == Folded("", "hm")
    assert folded("harmony", "Yes<|end|>", PROMPT + "<|channel|>final<|message|>") == Folded("Yes")


def test_what_a_tool_is_imagined_to_answer_is_text():
    answer = "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>rain<|end|>"

    assert folded("harmony", answer) == Folded("rain")


@pytest.mark.parametrize(
    "answer",
    [
        "No channel at all.",
        " No channel at all.",
        "<b>No channel</b> at all.",
        "<|channel|>final and nothing more",
        "<|channel|>",
        "<|channel|>" + "x" * 600,
        "<|start|> no header <|message|>text",
        "<|channel|>final, and more<|message|>text",
        "<|end|>",
        "<|chan",
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_what_is_no_message_is_text_to_the_last_character(answer: str, prompt: str):
    assert folded("harmony", answer, prompt) == Folded(answer)


def test_a_message_without_a_channel_is_for_the_user():
    assert folded("harmony", "<|message|>text", PROMPT) == Folded("text")
    assert folded("harmony", "<|message|>text") == Folded("<|message|>text")


def test_a_header_full_of_spaces_is_soon_found_to_be_none():
    answer = ("<|start|>" + " " * 480 + "!<|message|>") * 20

    assert folded("harmony", answer) == Folded(answer)
