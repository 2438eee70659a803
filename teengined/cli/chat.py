"""The chat on a terminal: the commands, and the loop around them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from teengined.cli.answer import Answer, Write
from teengined.cli.conversation import Conversation
from teengined.cli.failure import lines_of
from teengined.cli.parameters import DEFAULT, changed, parameter_names, setting_of, shown, unlike_default
from teengined.core.errors import ContextTooLong, DaemonUnreachable, TeengineError
from teengined.core.request import ChatMessage
from teengined.core.sampling import SamplingParams

__all__ = ["HELP", "Chat", "Interrupted", "read_turn"]

HELP = """\
/set NAME VALUE   change how answers are drawn; VALUE default takes it back
/set NAME         show one parameter; /set alone lists all
/set system TEXT  say who the model is (also /system TEXT)
/show             show the model, its instructions and what was set
/clear            forget what was said
/help             show this
/bye              leave (also Ctrl-D)
\"\"\"               begin and end a text of several lines
Ctrl-C            stop an answer, or give up a line
"""
_PROMPT, _CONTINUED = ">>> ", "... "
_FENCE = '"""'
_SYSTEM = "system"
_NAME_WIDTH = max(map(len, parameter_names())) + 2


class Interrupted(Exception):
    """The user stopped an answer; `text` is what had come."""

    def __init__(self, text: str) -> None:
        """Keep the part that was seen, because it belongs to the conversation."""
        super().__init__(text)
        self.text = text


def read_turn(read_line: Callable[[str], str]) -> str:
    """Return what the user says next; lines between two `\"\"\"` are one text.

    Raises:
        EOFError: the user is done.
        KeyboardInterrupt: the user gave the turn up.
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

    model: str
    answer: Callable[[tuple[ChatMessage, ...], SamplingParams], Answer]
    """Streams an answer; raises `Interrupted` when the user stops it."""
    read_line: Callable[[str], str]
    write: Write
    say: Write
    """A line to the user that is not the model's."""
    conversation: Conversation = field(default_factory=Conversation)
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def run(self) -> None:
        """Talk until the user leaves. Only a daemon that is gone ends it with an error."""
        while True:
            try:
                text = read_turn(self.read_line)
                if text == "/bye":
                    return
                if text.startswith("/"):
                    self._obey(text)
                elif text:
                    self._ask(text)
            except KeyboardInterrupt:
                self.say("\n(/bye or Ctrl-D to leave)")
            except EOFError:
                self.write("\n")
                return

    def _obey(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        match name:
            case "/set":
                self._set(*_first_word(rest))
            case "/system":
                self._set(_SYSTEM, rest.strip())
            case "/show":
                self.say("\n".join(self._state()))
            case "/clear":
                self.conversation = self.conversation.cleared()
            case "/help" | "/?":
                self.say(HELP.rstrip())
            case _:
                about = f"there is no command {name:.40}; a text that begins with / goes between two {_FENCE}"
                self.say(f"{about}\n{HELP.rstrip()}")

    def _set(self, name: str, text: str) -> None:
        if not name:
            self.say("\n".join(self._line(parameter) for parameter in parameter_names()))
        elif name == _SYSTEM:
            if text:
                self.conversation = replace(self.conversation, system="" if text == DEFAULT else text)
            self.say(f"{_SYSTEM:<{_NAME_WIDTH}}{self.conversation.system or 'nothing'}")
        else:
            self._set_parameter(name, text)

    def _set_parameter(self, name: str, text: str) -> None:
        try:
            if text:
                self.sampling = changed(self.sampling, name, text)
            self.say(self._line(setting_of(name)))
        except ValueError as error:
            self.say(f"error: {error}")

    def _line(self, parameter: str) -> str:
        return f"{parameter:<{_NAME_WIDTH}}{shown(self.sampling, parameter)}"

    def _state(self) -> list[str]:
        facts = [("model", self.model), ("turns", str(len(self.conversation.turns)))]
        if self.conversation.system:
            facts.append((_SYSTEM, self.conversation.system))
        lines = [f"{name:<{_NAME_WIDTH}}{value}" for name, value in facts]
        return lines + [self._line(parameter) for parameter in unlike_default(self.sampling)]

    def _ask(self, text: str) -> None:
        asked = self.conversation.asked(text)
        try:
            answer = self.answer(asked.messages, self.sampling)
            self.conversation = asked.answered(answer.text, answer.tool_calls)
        except Interrupted as stopped:
            if stopped.text:
                self.conversation = asked.answered(stopped.text)
        except DaemonUnreachable:
            raise
        except TeengineError as error:
            self._tell(error)
        self.write("\n")

    def _tell(self, error: TeengineError) -> None:
        """Say what went wrong with a question, which is then forgotten."""
        message, hint, _ = lines_of(error)
        if isinstance(error, ContextTooLong):
            hint = "/clear forgets what was said; /set max_tokens N asks for a shorter answer"
        self.say(f"error: {message}" + (f"\nhint: {hint}" if hint else ""))


def _first_word(text: str) -> tuple[str, str]:
    name, _, rest = text.strip().partition(" ")
    return name, rest.strip()
