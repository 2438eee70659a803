import pytest

from tests.unit.service.segments.folding import Folded, folded

ARGUMENTS = '{"city": "Köln"}'
TOLD = ("weather", ARGUMENTS)


@pytest.mark.parametrize(
    "answer",
    [
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}}}]',
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}, "id": "abc"}}]\n',
        f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}",
        f"[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{ARGUMENTS}",
        f"[TOOL_CALLS] weather {ARGUMENTS}",
    ],
)
def test_each_form_of_a_call_is_a_call(answer: str):
    assert folded("mistral", answer) == Folded("", "", (TOLD,))


def test_several_calls_share_an_array_or_have_a_marker_each():
    one = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'

    assert folded("mistral", f"[TOOL_CALLS][{one}, {one}]").calls == (TOLD, TOLD)
    assert folded("mistral", f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}" * 2).calls == (TOLD, TOLD)


def test_text_and_reasoning_around_calls_stay():
    answer = f"[THINK]hm[/THINK]Look: [TOOL_CALLS]weather{ARGUMENTS} done"

    assert folded("mistral", answer) == Folded("Look:  done", "hm", (TOLD,))


def test_reasoning_that_the_prompt_began_has_only_its_end():
    assert folded("mistral", "hm[/THINK]Yes", "[/INST][THINK]") == Folded("Yes", "hm")


@pytest.mark.parametrize(
    "answer",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS][]",
        "[TOOL_CALLS][1]",
        "[TOOL_CALLS][ARGS]{}",
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, 1]',
        '[TOOL_CALLS][{"name": "f", "arguments": {}}',
        "[TOOL_CALLS]weather",
        "[TOOL_CALLS]weather{1}",
        "[TOOL_CALLS]call the weather, please " + "x" * 300,
        "[TOOL_CALLS]" + "x" * 129 + "{}",
        "[TOOL_CALLS]{}",
        "a [THINK]b[/THINK]",
        "[TOOL_",
    ],
)
def test_what_is_no_call_is_text_to_the_last_character(answer: str):
    assert folded("mistral", answer) == Folded(answer)
