from teengined.cli.answer_view import AnswerView
from teengined.protocol.messages import TokenChunk, ToolCallDelta


def chunk(text: str = "", reasoning: str = "", calls: tuple[ToolCallDelta, ...] = ()) -> TokenChunk:
    return TokenChunk(request_id="r", sequence=0, token_ids=(), text=text, reasoning=reasoning, tool_calls=calls)


def view_of(*chunks: TokenChunk, is_terminal: bool = True, has_colour: bool = True) -> str:
    written: list[str] = []
    view = AnswerView(written.append, is_terminal=is_terminal, has_colour=has_colour)
    for each in chunks:
        view.show(each)
    view.end()
    view.end()
    return "".join(written)


def test_reasoning_is_dim_and_stands_apart():
    assert view_of(chunk("", "h"), chunk("", "m"), chunk("Yes", ""), chunk(".")) == "\x1b[2mhm\x1b[0m\n\nYes."


def test_reasoning_is_named_where_nothing_can_be_dim():
    assert view_of(chunk("", "hm\n"), chunk("Yes"), has_colour=False) == "(thinking) hm\n\nYes"


def test_a_pipe_gets_the_answer_alone_and_as_it_is():
    assert view_of(chunk("", "hm"), chunk("Y\x1b[2J"), is_terminal=False, has_colour=False) == "Y\x1b[2J"


def test_reasoning_that_was_stopped_leaves_the_terminal_plain():
    assert view_of(chunk("", "hm")) == "\x1b[2mhm\x1b[0m"


def test_neither_text_nor_reasoning_can_drive_the_terminal():
    assert view_of(chunk("a\x1b[2J", "b\x07")) == "\x1b[2mb\x1b[0m\n\na[2J"


def test_calls_are_marked_one_on_a_line():
    first = ToolCallDelta(index=0, id="1", name="weather", arguments='{"city":')
    second = ToolCallDelta(index=1, id="2", name="now", arguments="{}")

    told = view_of(
        chunk("Look:"), chunk(calls=(first,)), chunk(calls=(ToolCallDelta(index=0, arguments=" 1}"), second))
    )

    assert told == 'Look:\n[calls weather {"city": 1}]\n[calls now {}]'


def test_text_after_a_call_begins_on_a_line_of_its_own():
    call = ToolCallDelta(index=0, id="1", name="now", arguments="{}")

    assert view_of(chunk(calls=(call,)), chunk("Done")) == "[calls now {}]\nDone"
