"""What is asked of a model, and what it answers, in the words that every layer shares."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ChatMessage", "FinishReason", "Goal", "TokenLogprobs", "ToolCall", "Usage"]


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class Goal(StrEnum):
    """What a sequence runs for."""

    GENERATE = "generate"
    SCORE = "score"
    """Log-probabilities of its prompt; nothing is drawn."""
    EMBED = "embed"
    """One pooled vector of its prompt; nothing is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a function that the model asked for."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant's turn."""
    tool_call_id: str = ""
    """Of a tool's turn: which call it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural logarithms of the probabilities at one position, before temperature, penalties and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens, most probable first; as many as were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one generation used, as measured."""

    prompt_tokens: int
    completion_tokens: int
    """Of all choices together."""
    prefill_seconds: float
    decode_seconds: float
    streamed_bytes: int
    """Weight bytes moved from disk or host for this request."""
    bound_seconds_per_token: float
    """Decode time of one token at the bound: max(bytes moved / measured bandwidth, measured compute)."""
    cached_tokens: int = 0
    """Prompt tokens whose KV was there already."""
    queued_seconds: float = 0.0
    """From admission to the first step."""
    accepted_tokens: int = 0
    """Of `completion_tokens` those that were guessed right, and took no step of their own."""
