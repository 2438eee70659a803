"""One choice of an answer: its tokens become text up to a stop text, told apart from reasoning and calls of tools."""

from dataclasses import dataclass

from teengined.core.request import FinishReason
from teengined.protocol.worker_messages import SampledToken
from teengined.service.detokenizer import Detokenizer
from teengined.service.segments import SegmentDelta, SegmentFold
from teengined.service.stop_text import StopText

__all__ = ["Choice"]


@dataclass(slots=True, kw_only=True)
class Choice:
    """A fold over one sequence's tokens."""

    index: int
    sequence_id: int
    detokenizer: Detokenizer
    stop: StopText
    segments: SegmentFold | None = None
    """None: everything is text."""
    min_tokens: int = 0
    """Before so many tokens no stop text counts."""
    num_tokens: int = 0
    reason: FinishReason | None = None
    """Set once it has ended."""

    def add(self, token: SampledToken, *, silent: bool) -> SegmentDelta:
        """Return what a token completes; a silent one (end of sequence) has no text."""
        self.num_tokens += 1
        text = self._tell("" if silent else self.detokenizer.add(token.token_id))
        return SegmentDelta(text=text) if self.segments is None else self.segments.feed(text)

    def end(self, reason: FinishReason) -> SegmentDelta:
        """Return what still waited: for the rest of a code point, of a stop text, or of a segment."""
        text = self._tell(self.detokenizer.flush()) + self.stop.flush()
        # The token that completed the stop text may also have been the last one allowed.
        self.reason = FinishReason.STOP if self.stop.found and reason is FinishReason.LENGTH else reason
        if self.segments is None:
            return SegmentDelta(text=text)
        first, last = self.segments.feed(text), self.segments.finish()
        return SegmentDelta(
            text=first.text + last.text,
            reasoning=first.reasoning + last.reasoning,
            tool_calls=first.tool_calls + last.tool_calls,
        )

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: no further token is wanted."""
        return self.stop.found

    def _tell(self, text: str) -> str:
        return self.stop.add(text, counts=self.num_tokens >= self.min_tokens)
