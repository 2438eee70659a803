from collections.abc import Iterable

import pytest

from teengined.cli.answer import Answer
from teengined.cli.chat import Chat, Conversation, Interrupted, read_turn
from teengined.core.errors import ContextTooLong, DaemonUnreachable
from teengined.core.request import ChatMessage, FinishReason, Usage
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


class Terminal:
    """Types what it was given, then hangs up; keeps what was asked and said."""

    def __init__(self, typed: Iterable[str | BaseException], answer: str | BaseException = "yes") -> None:
        self._typed = iter(typed)
        self._answer = answer
        self.asked: list[tuple[ChatMessage, ...]] = []
        self.said: list[str] = []
        self.chat = Chat(answer=self.answer, read_line=self.read_line, write=lambda _: None, say=self.said.append)

    def read_line(self, _prompt: str) -> str:
        line = next(self._typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def answer(self, messages: tuple[ChatMessage, ...]) -> Answer:
        self.asked.append(messages)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return Answer(text=self._answer, first_token_seconds=0, seconds=0, num_prompt_tokens=1, finished=FINISHED)

    def contents(self) -> list[str]:
        return [message.content for message in self.chat.conversation.messages]


def test_the_second_question_carries_the_first_and_its_answer():
    terminal = Terminal(["one", "two"])

    terminal.chat.run()

    assert [message.content for message in terminal.asked[1]] == ["one", "yes", "two"]
    assert [message.role for message in terminal.asked[1]] == ["user", "assistant", "user"]


def test_clear_forgets_and_system_stays():
    terminal = Terminal(["/system be brief", "one", "/clear", "two"])

    terminal.chat.run()

    assert [message.content for message in terminal.asked[1]] == ["be brief", "two"]


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
    terminal = Terminal(["one"], ContextTooLong("5000 tokens exceed 4096", hint="/clear"))

    terminal.chat.run()

    assert terminal.said == ["error: 5000 tokens exceed 4096\nhint: /clear"]
    assert terminal.contents() == []


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


def test_a_conversation_is_not_changed_by_what_comes_after_it():
    before = Conversation(system="s")

    before.asked("q")

    assert before.turns == ()
