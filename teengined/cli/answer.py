"""One answer: streamed to where it is read, and measured from the asker's side."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from teengined.core.errors import ProtocolError
from teengined.core.quantities import format_bytes, format_seconds
from teengined.core.request import ToolCall, Usage
from teengined.protocol.messages import Accepted, Finished, Generate, TokenChunk, ToolCallDelta

if TYPE_CHECKING:
    from teengined.client import Client

__all__ = ["Answer", "Clock", "Gathered", "Hear", "Speed", "Write", "speed_of", "stream_answer", "timing_lines"]

Write = Callable[[str], None]
Clock = Callable[[], float]
Hear = Callable[[Accepted | TokenChunk], None]
"""Is told each part of an answer as it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer as its asker saw it."""

    text: str
    first_token_seconds: float
    """From sending the request to its first chunk."""
    seconds: float
    num_prompt_tokens: int
    finished: Finished
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(slots=True)
class Gathered:
    """What has come of an answer so far."""

    _texts: list[str] = field(default_factory=list[str])
    _calls: dict[int, ToolCall] = field(default_factory=dict[int, ToolCall])

    def add(self, chunk: TokenChunk) -> None:
        """Take the next chunk in."""
        self._texts.append(chunk.text)
        for delta in chunk.tool_calls:
            self._calls[delta.index] = _extended(self._calls.get(delta.index), delta)

    @property
    def text(self) -> str:
        """The text, without reasoning and calls."""
        return "".join(self._texts)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in their order; the last one may be unfinished."""
        return tuple(call for _, call in sorted(self._calls.items()))


def _extended(call: ToolCall | None, delta: ToolCallDelta) -> ToolCall:
    if call is None:
        return ToolCall(id=delta.id, name=delta.name, arguments=delta.arguments)
    return ToolCall(id=call.id, name=call.name, arguments=call.arguments + delta.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What decoding reached. None where the answer was too short to measure."""

    tokens_per_second: float | None
    share_of_bound: float | None
    """Measured rate over the rate at the bound; 1 is the wall."""
    streamed_bytes_per_token: float


def stream_answer(client: "Client", request: Generate, hear: Hear, clock: Clock) -> Answer:
    """Tell `hear` each part of the answer as it comes, and return it whole.

    Interrupting it (`KeyboardInterrupt`) cancels the request, where it was accepted; the client stays usable.
    """
    began_seconds = clock()
    first_token_seconds: float | None = None
    gathered = Gathered()
    num_prompt_tokens = 0
    with contextlib.closing(client.generate(request)) as events:
        for event in events:
            if isinstance(event, Finished):
                seconds = clock() - began_seconds
                return Answer(
                    text=gathered.text,
                    first_token_seconds=seconds if first_token_seconds is None else first_token_seconds,
                    seconds=seconds,
                    num_prompt_tokens=num_prompt_tokens,
                    finished=event,
                    tool_calls=gathered.tool_calls,
                )
            if isinstance(event, Accepted):
                num_prompt_tokens = event.num_prompt_tokens
            else:
                if first_token_seconds is None:
                    first_token_seconds = clock() - began_seconds
                gathered.add(event)
            hear(event)
    raise ProtocolError("the answer ended without its last message")


def speed_of(usage: Usage) -> Speed:
    """Return the decode rate: tokens after the first, over the time they took.

    Each token takes one pass over the weights, the first one included, so bytes are divided by all of them.
    """
    num_steps = usage.completion_tokens - 1
    measured = num_steps > 0 and usage.decode_seconds > 0
    tokens_per_second = num_steps / usage.decode_seconds if measured else None
    bounded = tokens_per_second is not None and usage.bound_seconds_per_token > 0
    return Speed(
        tokens_per_second=tokens_per_second,
        share_of_bound=tokens_per_second * usage.bound_seconds_per_token if tokens_per_second and bounded else None,
        streamed_bytes_per_token=usage.streamed_bytes / max(usage.completion_tokens, 1),
    )


def timing_lines(answer: Answer) -> list[str]:
    """Return what `--verbose` tells after an answer, one `name  value` line a fact."""
    usage = answer.finished.usage
    speed = speed_of(usage)
    facts = [
        ("first token", format_seconds(answer.first_token_seconds)),
        ("total", format_seconds(answer.seconds)),
        ("prompt", f"{usage.prompt_tokens} tokens in {format_seconds(usage.prefill_seconds)}"),
        ("answer", f"{usage.completion_tokens} tokens in {format_seconds(usage.decode_seconds)}"),
    ]
    if usage.accepted_tokens:
        facts.append(("guessed", f"{usage.accepted_tokens} tokens, which took no step of their own"))
    if speed.tokens_per_second is not None:
        facts.append(("speed", f"{speed.tokens_per_second:.1f} tokens/s"))
    if speed.share_of_bound is not None:
        bound = f"{1 / usage.bound_seconds_per_token:.1f} tokens/s"
        facts.append(("bound", f"{bound}; reached {speed.share_of_bound * 100:.0f}% of it"))
    facts.append(("streamed", f"{format_bytes(speed.streamed_bytes_per_token)} per token"))
    return [f"{name:<13}{value}" for name, value in facts]
