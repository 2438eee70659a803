"""The order of an answer: each chunk once, none missing."""

from dataclasses import dataclass

from teengined.core.errors import ProtocolError
from teengined.protocol.messages import Accepted, Finished, TokenChunk

__all__ = ["AnswerEvent", "AnswerOrder"]

AnswerEvent = Accepted | TokenChunk | Finished


@dataclass(slots=True)
class AnswerOrder:
    """Follows the sequence numbers of one answer."""

    request_id: str = ""
    finished: bool = False
    _next: int = 0

    def admit(self, event: AnswerEvent) -> bool:
        """Say whether `event` is new to the caller. False for one that was seen before (a resumed stream repeats).

        Raises:
            ProtocolError: a chunk is missing.
        """
        if isinstance(event, Accepted):
            repeated, self.request_id = bool(self.request_id), event.request_id
            return not repeated
        if event.sequence < self._next:
            return False
        if event.sequence > self._next:
            raise ProtocolError(f"chunk {self._next} of request {event.request_id} is missing")
        self._next += 1
        self.finished = isinstance(event, Finished)
        return True
