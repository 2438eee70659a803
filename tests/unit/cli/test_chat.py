from collections.abc import Iterable

import pytest

from teengined.cli.answer import Answer
from teengined.cli.chat import Chat, Interrupted, read_turn
from teengined.core.errors import ContextTooLong, DaemonUnreachable, RequestError
from teengined.core.request import ChatMessage, FinishReason, ToolCall, Usage
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Finished

USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    streamed_bytes=0,
    bound_seconds_per_token=0.0,
)
FINISHED = Finished(request_id="r", sequence=1, reason=FinishReason.STOP, usage=USAGE)


CALL = ToolCall(id="1", name="weather", arguments="{}")


class Terminal:
    """Types what it was given, then hangs up; keeps what was asked and said."""

    def __init__(self, typed: Iterable[str | BaseException], answer: str | BaseException = "yes") -> None:
        self._typed = iter(typed)
        self._answer = answer
        self.asked: list[tuple[ChatMessage, ...]] = []
        self.drawn: list[SamplingParams] = []
        self.said: list[str] = []
        self.chat = Chat(
            model="tiny",
            answer=self.answer,
            read_line=self.read_line,
            write=lambda _: None,
            say=self.said.append,
        )

    def read_line(self, _prompt: str) -> str:
        line = next(self._typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def answer(self, messages: tuple[ChatMessage, ...], sampling: SamplingParams) -> Answer:
        self.asked.append(messages)
        self.drawn.append(sampling)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return Answer(
            text=self._answer,
            first_token_seconds=0,
            seconds=0,
            num_prompt_tokens=1,
            finished=FINISHED,
            tool_calls=(CALL,) if self._answer == "calls" else (),
        )

    def contents(self) -> list[str]:
        return [message.content for message in self.chat.conversation.messages]


def test_the_second_question_carries_the_first_and_its_answer():
    terminal = Terminal(["one", "two"])

    terminal.chat.run()

    assert [message.content for message in terminal.asked[1]] == ["one", "yes", "two"]
    assert [message.role for message in terminal.asked[1]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("command", ["/system be brief", "/set system be brief"])
def test_clear_forgets_and_system_stays(command: str):
    terminal = Terminal([command, "one", "/clear", "two"])

    terminal.chat.run()

    assert [message.content for message in terminal.asked[1]] == ["be brief", "two"]


def test_system_is_shown_and_taken_back():
    terminal = Terminal(["/set system be brief", "/set system", "/set system default", "one"])

    terminal.chat.run()

    assert [line.split(maxsplit=1)[1] for line in terminal.said] == ["be brief", "be brief", "nothing"]
    assert [message.content for message in terminal.asked[0]] == ["one"]


def test_what_is_set_counts_for_the_answers_after_it():
    terminal = Terminal(["one", "/set temperature 0.5", "/set top-k 40", "two", "/set temperature default", "three"])

    terminal.chat.run()

    assert [(sampling.temperature, sampling.top_k) for sampling in terminal.drawn] == [(0, 0), (0.5, 40), (0, 40)]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/set temprature 1", "error: no parameter is named 'temprature'; did you mean temperature?"),
        ("/set temperature hot", "error: temperature takes a number or default, not 'hot'"),
        ("/set temperature -1", "error: temperature must be between 0 and 100, got -1.0"),
        ("/set num_choices 2", "error: num_choices has no meaning in a chat, which shows one answer and only its text"),
    ],
)
def test_what_cannot_be_set_is_told_and_changes_nothing(command: str, told: str):
    terminal = Terminal([command, "one"])

    terminal.chat.run()

    assert terminal.said == [told]
    assert terminal.drawn == [SamplingParams()]


def test_set_alone_lists_everything_and_show_only_what_differs():
    terminal = Terminal(["/set", "/set seed 7", "/system be brief", "one", "/show"])

    terminal.chat.run()

    listed, shown = terminal.said[0].splitlines(), terminal.said[-1].splitlines()
    assert "temperature         0" in listed
    assert [line.split(maxsplit=1) for line in shown] == [
        ["model", "tiny"],
        ["turns", "2"],
        ["system", "be brief"],
        ["seed", "7"],
    ]


def test_calls_of_an_answer_stay_in_the_conversation():
    terminal = Terminal(["one", "two"], "calls")

    terminal.chat.run()

    assert terminal.asked[1][1].tool_calls == (CALL,)


def test_bye_leaves_before_anything_else_is_asked():
    terminal = Terminal(["/bye", "one"])

    terminal.chat.run()

    assert terminal.asked == []


def test_an_interrupted_answer_keeps_what_was_seen():
    terminal = Terminal(["one"], Interrupted("ye"))

    terminal.chat.run()

    assert terminal.contents() == ["one", "ye"]


def test_an_interrupt_at_the_prompt_does_not_leave():
    terminal = Terminal([KeyboardInterrupt(), "one"])

    terminal.chat.run()

    assert len(terminal.asked) == 1


def test_a_refused_question_is_told_and_forgotten():
    terminal = Terminal(["one"], RequestError("the chat template refuses", hint="roles"))

    terminal.chat.run()

    assert terminal.said == ["error: the chat template refuses\nhint: roles"]
    assert terminal.contents() == []


def test_a_conversation_that_no_longer_fits_says_how_to_go_on():
    terminal = Terminal(["one"], ContextTooLong("5000 tokens exceed 4096", hint="load it with a larger --context"))

    terminal.chat.run()

    assert "error: 5000 tokens exceed 4096\nhint: /clear forgets" in terminal.said[0]


def test_a_daemon_that_is_gone_ends_the_chat():
    terminal = Terminal(["one"], DaemonUnreachable("gone"))

    with pytest.raises(DaemonUnreachable):
        terminal.chat.run()


def test_an_unknown_command_lists_the_known_ones():
    terminal = Terminal(["/fly"])

    terminal.chat.run()

    assert "/clear" in terminal.said[0]


def test_three_quotes_hold_several_lines_together():
    lines = iter(['"""first', "second", 'third"""'])

    assert read_turn(lambda _: next(lines)) == "first\nsecond\nthird"


def test_three_quotes_may_end_on_their_own_line():
    lines = iter(['"""', "only", '"""'])

    assert read_turn(lambda _: next(lines)) == "only"


@pytest.mark.parametrize("command", ["/help", "/?"])
def test_help_names_every_command(command: str):
    terminal = Terminal([command])

    terminal.chat.run()

    assert all(name in terminal.said[0] for name in ("/set", "/show", "/clear", "/bye", "Ctrl-C"))


def test_an_interrupt_gives_up_a_text_of_several_lines():
    terminal = Terminal(['"""one', KeyboardInterrupt(), "two"])

    terminal.chat.run()

    assert [message.content for message in terminal.asked[0]] == ["two"]
