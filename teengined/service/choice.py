"""One choice of an answer: its tokens become text, up to a stop text."""

from dataclasses import dataclass

from teengined.core.request import FinishReason
from teengined.protocol.worker_messages import SampledToken
from teengined.service.detokenizer import Detokenizer
from teengined.service.stop_text import StopText

__all__ = ["Choice"]


@dataclass(slots=True, kw_only=True)
class Choice:
    """A fold over one sequence's tokens."""

    index: int
    sequence_id: int
    detokenizer: Detokenizer
    stop: StopText
    min_tokens: int = 0
    """Before so many tokens no stop text counts."""
    num_tokens: int = 0
    reason: FinishReason | None = None
    """Set once it has ended."""

    def add(self, token: SampledToken, *, silent: bool) -> str:
        """Return the text that a token completes; a silent one (end of sequence) has none."""
        self.num_tokens += 1
        return self._tell("" if silent else self.detokenizer.add(token.token_id))

    def end(self, reason: FinishReason) -> str:
        """Return the text that still waited: for the rest of a code point, or for the rest of a stop text."""
        rest = self._tell(self.detokenizer.flush()) + self.stop.flush()
        # The token that completed the stop text may also have been the last one allowed.
        self.reason = FinishReason.STOP if self.stop.found and reason is FinishReason.LENGTH else reason
        return rest

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: no further token is wanted."""
        return self.stop.found

    def _tell(self, text: str) -> str:
        return self.stop.add(text, counts=self.num_tokens >= self.min_tokens)
