"""Messages about answers: generation, scoring, embeddings, and the requests under way. Part of `messages`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from teengined.core.request import ChatMessage, FinishReason, TokenLogprobs, Usage
from teengined.core.sampling import SamplingParams

__all__ = [
    "Accepted",
    "Cancel",
    "Embed",
    "Embedded",
    "Finished",
    "Generate",
    "Grant",
    "ListRequests",
    "RequestItem",
    "RequestList",
    "Score",
    "Scored",
    "TokenChunk",
    "ToolCallDelta",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Ask for one answer. Exactly one of `prompt`, `messages` and `token_ids` is given."""

    model: str
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    token_ids: tuple[int, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    timeout_seconds: float = 0.0
    """0: the configured maximum."""
    client_id: str = ""
    """A name of the caller's choosing. While a request with it is under way, its owner cannot start another."""
    priority: int = 0
    """-100 to 100: higher goes first among the requests of one owner. Owners share alike whatever their priorities,
    unless the daemon's scheduling policy says otherwise."""
    cache_salt: str = ""
    """Cached prefixes are shared only between requests of one owner with the same salt."""
    tools: tuple[str, ...] = ()
    """JSON of each tool that the chat template is told of."""
    template_options: Mapping[str, str] = field(default_factory=dict[str, str])
    """More variables for the chat template, each JSON."""
    parse: bool = False
    """Tell reasoning and tool calls apart from text, where the model's format is known."""
    speculate: bool = True
    """Let tokens be guessed ahead where that is faster. The answer is the same either way."""
    credits: int = 0
    """Chunks that may be sent before the first `Grant`; 0: without limit. What may not be sent yet is joined into
    larger chunks, so that a slow reader costs a bounded buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Take so many more chunks. Sent under the correlation of its `Generate`; never answered."""

    request_id: str
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is admitted. `request_id` is made by the daemon and unique for its lifetime."""

    request_id: str
    num_prompt_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What some tokens add to one tool call. Its first delta has id and name; later ones only more arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """Tokens of an answer in order. `sequence` counts chunks of this request from 0 without gap."""

    request_id: str
    sequence: int
    token_ids: tuple[int, ...]
    text: str
    """What these tokens add to the text; never half a code point (it arrives with a later chunk)."""
    choice: int = 0
    reason: FinishReason | None = None
    """Set on the last chunk of a choice."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they were asked for."""
    reasoning: str = ""
    """What these tokens add to the model's thinking, where it is told apart."""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of an answer: of all its choices."""

    request_id: str
    sequence: int
    reason: FinishReason
    """Of the first choice."""
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens but the first, where they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop a request of one's own. Its own call ends with `Finished(reason=cancelled)`.

    Root and the user of the daemon may stop anyone's. Without a `request_id` it is a word within a call that is under
    way, sent under the correlation of that call by a caller who leaves it: the call ends, with an error that says so,
    and the word is not answered.
    """

    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Ask how probable a continuation is. Text or token ids, both sides alike."""

    model: str
    context: str = ""
    continuation: str = ""
    context_ids: tuple[int, ...] = ()
    continuation_ids: tuple[int, ...] = ()
    top: int = 0
    """Alternatives to tell for each position."""
    timeout_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Answer to `Score`."""

    logprobs: tuple[TokenLogprobs, ...]
    """Of each token of the continuation."""
    total: float
    """Their sum: the log-likelihood of the continuation."""
    is_greedy: bool
    """Whether each token is the most probable one at its place."""
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Ask for one vector for each text or list of token ids."""

    model: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    timeout_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Answer to `Embed`, in its order."""

    vectors: tuple[bytes, ...]
    """fp32, little-endian."""
    dimensions: int
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequests:
    """Ask for one's own requests under way; root and the daemon's user are told of everyone's."""

    model: str = ""
    """Empty: of all loaded models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestItem:
    """One request under way. Never its text."""

    request_id: str
    model: str
    owner: str
    client_id: str
    state: str
    """`queued`, `prefill`, `decode`, or `waiting for its reader`."""
    priority: int
    num_choices: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_emitted_tokens: int
    max_tokens: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestList:
    """Answer to `ListRequests`, oldest first."""

    requests: tuple[RequestItem, ...]
