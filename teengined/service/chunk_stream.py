"""From pieces of an answer to numbered chunks, at most as many as their reader has granted. Pure but for `send`."""

import io
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from teengined.core.request import FinishReason, TokenLogprobs
from teengined.protocol.messages import TokenChunk, ToolCallDelta
from teengined.service.segments import SegmentDelta

__all__ = ["ChunkStream", "Piece"]

# What a token id takes while it waits in its array, and a token with its logarithm as Python holds it: a tuple or an
# object, an integer and a float. On the wire both take less.
_ID_BYTES = 8
_ALTERNATIVE_BYTES = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one token, or the end of a choice, adds to an answer."""

    choice: int
    said: SegmentDelta
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    reason: FinishReason | None = None

    @property
    def size_bytes(self) -> int:
        """About what it takes while it waits; more than in a message."""
        num_alternatives = sum(1 + len(item.top) for item in self.logprobs)
        texts = [self.said.text, self.said.reasoning]
        texts += [part for call in self.said.tool_calls for part in (call.id, call.name, call.arguments)]
        size = _ID_BYTES * len(self.token_ids) + _ALTERNATIVE_BYTES * num_alternatives
        return size + sum(len(text.encode()) for text in texts)


@dataclass(slots=True)
class _Joined:
    """Pieces of one choice that wait, without what an object for each of them would take."""

    choice: int
    token_ids: "array[int]" = field(default_factory=lambda: array("q"))
    text: io.StringIO = field(default_factory=io.StringIO)
    reasoning: io.StringIO = field(default_factory=io.StringIO)
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    tool_calls: list[ToolCallDelta] = field(default_factory=list[ToolCallDelta])
    reason: FinishReason | None = None
    size_bytes: int = 0

    def add(self, piece: Piece) -> None:
        self.token_ids.extend(piece.token_ids)
        self.text.write(piece.said.text)
        self.reasoning.write(piece.said.reasoning)
        self.logprobs.extend(piece.logprobs)
        self.tool_calls.extend(piece.said.tool_calls)
        self.reason = piece.reason or self.reason
        self.size_bytes += piece.size_bytes

    def chunk(self, request_id: str, sequence: int) -> TokenChunk:
        return TokenChunk(
            request_id=request_id,
            sequence=sequence,
            token_ids=tuple(self.token_ids),
            text=self.text.getvalue(),
            choice=self.choice,
            reason=self.reason,
            logprobs=tuple(self.logprobs),
            reasoning=self.reasoning.getvalue(),
            tool_calls=tuple(self.tool_calls),
        )


@dataclass(slots=True, kw_only=True)
class ChunkStream:
    """The chunks of one answer. What may not be sent yet is joined into one chunk for each choice, oldest first."""

    request_id: str
    send: Callable[[TokenChunk], None]
    """Hands a chunk over without waiting."""
    credits: int | None
    """Chunks that may still be sent; None: without limit."""
    max_buffer_bytes: int
    num_sent: int = 0
    _waiting: dict[int, _Joined] = field(default_factory=dict[int, _Joined])

    def add(self, piece: Piece) -> None:
        """Take a piece in; `flush` sends it."""
        joined = self._waiting.get(piece.choice)
        if joined is None:
            joined = self._waiting[piece.choice] = _Joined(piece.choice)
        joined.add(piece)

    def flush(self) -> None:
        """Send what waits, as far as the credits go."""
        while self._waiting and self.credits != 0:
            joined = self._waiting.pop(next(iter(self._waiting)))
            if self.credits is not None:
                self.credits -= 1
            self.num_sent += 1
            self.send(joined.chunk(self.request_id, self.num_sent - 1))

    def grant(self, num_chunks: int) -> None:
        """Let so many more chunks go, and send what waited for them."""
        if self.credits is not None:
            self.credits += max(0, num_chunks)
            self.flush()

    def drop(self) -> None:
        """Forget what waits: nobody wants it any more."""
        self._waiting.clear()

    @property
    def waits(self) -> bool:
        """Whether something waits for its reader."""
        return bool(self._waiting)

    @property
    def is_over(self) -> bool:
        """Whether more waits than may."""
        return sum(joined.size_bytes for joined in self._waiting.values()) > self.max_buffer_bytes
