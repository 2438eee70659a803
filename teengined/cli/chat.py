"""The conversation on a terminal: what was said so far, the commands, and the loop around them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from teengined.cli.answer import Answer, Write
from teengined.cli.failure import lines_of
from teengined.core.errors import DaemonUnreachable, TeengineError
from teengined.core.request import ChatMessage

__all__ = ["HELP", "Chat", "Conversation", "Interrupted", "read_turn"]

HELP = """\
/system TEXT   say who the model is
/clear         forget what was said
/bye           leave (also Ctrl-D)
\"\"\"            begin and end a text of several lines
Ctrl-C         stop an answer
"""
_PROMPT, _CONTINUED = ">>> ", "... "
_FENCE = '"""'


class Interrupted(Exception):
    """The user stopped an answer; `text` is what had come."""

    def __init__(self, text: str) -> None:
        """Keep the part that was seen, because it belongs to the conversation."""
        super().__init__(text)
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns in order. Immutable: a turn that fails leaves the one before it."""

    system: str = ""
    turns: tuple[ChatMessage, ...] = ()

    def asked(self, text: str) -> "Conversation":
        """Return it with the user's next turn."""
        return replace(self, turns=(*self.turns, ChatMessage(role="user", content=text)))

    def answered(self, text: str) -> "Conversation":
        """Return it with the model's next turn."""
        return replace(self, turns=(*self.turns, ChatMessage(role="assistant", content=text)))

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """What the model is given."""
        opening = (ChatMessage(role="system", content=self.system),) if self.system else ()
        return (*opening, *self.turns)


def read_turn(read_line: Callable[[str], str]) -> str:
    """Return what the user says next; lines between two `\"\"\"` are one text.

    Raises:
        EOFError: the user is done.
    """
    line = read_line(_PROMPT)
    if not line.startswith(_FENCE):
        return line.strip()
    lines = [line.removeprefix(_FENCE)]
    while not lines[-1].endswith(_FENCE):
        lines.append(read_line(_CONTINUED))
    lines[-1] = lines[-1].removesuffix(_FENCE)
    return "\n".join(lines).strip()


@dataclass(slots=True, kw_only=True)
class Chat:
    """The loop. Lines come in and text goes out through callables, so that it can be driven without a terminal."""

    answer: Callable[[tuple[ChatMessage, ...]], Answer]
    """Streams an answer; raises `Interrupted` when the user stops it."""
    read_line: Callable[[str], str]
    write: Write
    say: Write
    """A line to the user that is not the model's."""
    conversation: Conversation = field(default_factory=Conversation)

    def run(self) -> None:
        """Talk until the user leaves. Only a daemon that is gone ends it with an error."""
        while True:
            try:
                text = read_turn(self.read_line)
            except KeyboardInterrupt:
                self.say("\n(/bye or Ctrl-D to leave)")
                continue
            except EOFError:
                self.write("\n")
                return
            if text == "/bye":
                return
            if text.startswith("/"):
                self._obey(text)
            elif text:
                self._ask(text)

    def _obey(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name == "/clear":
            self.conversation = replace(self.conversation, turns=())
        elif name == "/system" and rest.strip():
            self.conversation = replace(self.conversation, system=rest.strip())
        else:
            self.say(HELP.rstrip())

    def _ask(self, text: str) -> None:
        asked = self.conversation.asked(text)
        try:
            self.conversation = asked.answered(self.answer(asked.messages).text)
        except Interrupted as stopped:
            if stopped.text:
                self.conversation = asked.answered(stopped.text)
        except DaemonUnreachable:
            raise
        except TeengineError as error:
            message, hint, _ = lines_of(error)
            self.say(f"error: {message}" + (f"\nhint: {hint}" if hint else ""))
        self.write("\n")
