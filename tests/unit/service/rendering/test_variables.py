import json

import pytest

from teengined.core.errors import RequestError
from teengined.core.request import ChatMessage, ToolCall
from teengined.service.rendering.variables import parse_options, parse_tools, template_variables

TOOL = '{"type": "function", "function": {"name": "weather"}}'


def test_tools_are_parsed_in_their_order():
    assert parse_tools((TOOL, "{}")) == ({"type": "function", "function": {"name": "weather"}}, {})


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ((TOOL, "{'name': 1}"), r"tools\[1\] is not valid JSON"),
        ((TOOL, "[]"), r"tools\[1\] is no JSON object"),
        (("NaN",), r"tools\[0\] is not valid JSON: NaN is no JSON number"),
        (("[" * 100_000,), r"tools\[0\] is nested too deeply"),
        ((TOOL,) * 129, "at most 128 tools may be given, got 129"),
        ((json.dumps({"a": "b" * 300_000}),), "tools may have 262144 characters together"),
    ],
)
def test_tools_that_cannot_be_given_are_refused_by_their_place(tools: tuple[str, ...], told: str):
    with pytest.raises(RequestError, match=told):
        parse_tools(tools)


def test_options_are_parsed_by_name():
    assert parse_options({"enable_thinking": "false", "documents": "[1]"}) == {
        "enable_thinking": False,
        "documents": [1],
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"enable_thinking": "False"}, r"template_options\['enable_thinking'\] is not valid JSON"),
        ({"messages": "[]"}, "template_options may not set messages"),
        ({"tools": "[]"}, "template_options may not set tools"),
        ({"a b": "1"}, "'a b' cannot name a template option"),
        ({"_private": "1"}, "cannot name a template option"),
        ({"": "1"}, "cannot name a template option"),
        ({"x" * 65: "1"}, "cannot name a template option"),
        ({f"o{index}": "1" for index in range(33)}, "at most 32 template options"),
        ({"o": '"' + "x" * 300_000 + '"'}, "template_options may have 262144 characters together"),
    ],
)
def test_options_that_cannot_be_given_are_refused_by_their_name(options: dict[str, str], told: str):
    with pytest.raises(RequestError, match=told):
        parse_options(options)


def test_a_plain_turn_has_role_and_content_alone():
    variables = template_variables((ChatMessage(role="user", content="hi"),), (), {})

    assert variables["messages"] == [{"role": "user", "content": "hi"}]
    assert variables["tools"] is None
    assert variables["add_generation_prompt"] is True


def test_arguments_of_a_call_are_an_object_where_they_parse():
    calls = (ToolCall(id="a", name="f", arguments='{"x": 1}'), ToolCall(id="b", name="g", arguments="x = 1"))

    variables = template_variables((ChatMessage(role="assistant", content="", tool_calls=calls),), (), {})

    functions = [call["function"] for call in variables["messages"][0]["tool_calls"]]
    assert functions == [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "x = 1"}]


def test_a_tools_turn_says_which_call_of_which_function_it_answers():
    asked = ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="a", name="weather", arguments="{}"),))
    answered = ChatMessage(role="tool", content="rain", tool_call_id="a")
    stray = ChatMessage(role="tool", content="sun", tool_call_id="z")

    turns = template_variables((asked, answered, stray), (), {})["messages"]

    assert turns[1] == {"role": "tool", "content": "rain", "tool_call_id": "a", "name": "weather"}
    assert turns[2] == {"role": "tool", "content": "sun", "tool_call_id": "z"}


def test_options_may_change_how_the_prompt_ends():
    assert template_variables((), (), {"add_generation_prompt": False})["add_generation_prompt"] is False
