"""What was said so far in a chat."""

from dataclasses import dataclass, replace

from teengined.core.request import ChatMessage, ToolCall

__all__ = ["Conversation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns in order. Immutable: a turn that fails leaves the one before it."""

    system: str = ""
    turns: tuple[ChatMessage, ...] = ()

    def asked(self, text: str) -> "Conversation":
        """Return it with the user's next turn."""
        return replace(self, turns=(*self.turns, ChatMessage(role="user", content=text)))

    def answered(self, text: str, tool_calls: tuple[ToolCall, ...] = ()) -> "Conversation":
        """Return it with the model's next turn."""
        turn = ChatMessage(role="assistant", content=text, tool_calls=tool_calls)
        return replace(self, turns=(*self.turns, turn))

    def cleared(self) -> "Conversation":
        """Return it without its turns."""
        return replace(self, turns=())

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """What the model is given."""
        opening = (ChatMessage(role="system", content=self.system),) if self.system else ()
        return (*opening, *self.turns)
