import pytest

from tests.unit.service.segments.folding import Folded, folded

ARGUMENTS = '{"city": "Köln"}'
TOLD = ("weather", ARGUMENTS)
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
FENCED = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜>"
BARE = f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"


@pytest.mark.parametrize("call", [FENCED, BARE])
@pytest.mark.parametrize("between", ["", "\n"])
def test_calls_are_told_in_both_forms(call: str, between: str):
    answer = f"Let me see.{BEGIN}{between}{call}{between}{call}{between}{END}"

    assert folded("deepseek", answer) == Folded("Let me see.", "", (TOLD, TOLD))


def test_reasoning_comes_first():
    assert folded("deepseek", f"<think>\nhm</think>\n\nYes{BEGIN}{BARE}{END}") == Folded("Yes", "hm", (TOLD,))
    assert folded("deepseek", "hm</think>Yes", "<｜Assistant｜><think>\n") == Folded("Yes", "hm")


def test_an_answer_may_end_right_after_the_arguments():
    assert folded("deepseek", BEGIN + BARE.removesuffix("<｜tool▁call▁end｜>")).calls == (TOLD,)


def test_a_call_may_lack_its_outer_markers():
    assert folded("deepseek", BARE) == Folded("", "", (TOLD,))


@pytest.mark.parametrize(
    "answer",
    [
        BEGIN,
        END,
        BEGIN + END,
        BEGIN + "no call",
        BEGIN + "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁begin｜>weather",
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>",
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>[1]<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{1}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{",
        "<｜tool▁call▁begin｜>" + "x" * 600,
        "<｜tool▁",
    ],
)
def test_what_is_no_call_is_text_to_the_last_character(answer: str):
    assert folded("deepseek", answer) == Folded(answer)


def test_text_right_after_the_arguments_stays():
    answer = BARE.removesuffix("<｜tool▁call▁end｜>") + "done"

    assert folded("deepseek", answer) == Folded("done", "", (TOLD,))
