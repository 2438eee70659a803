"""Replies sorted by call, without sockets, so that both clients keep the same rules."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from teengined.core.errors import QueueFull, TeengineError, error_class
from teengined.protocol.codec import Envelope
from teengined.protocol.messages import Accepted, ErrorReply, LoadProgress, TokenChunk

__all__ = ["MAX_WAITING_REPLIES", "Mailboxes", "error_of", "is_final"]

# Replies of one call that wait for a reader who does something else: a long answer fits, an endless one does not.
MAX_WAITING_REPLIES = 65_536
_STREAMED = (Accepted, TokenChunk, LoadProgress)


def is_final(message: Any) -> bool:
    """Say whether `message` ends its call."""
    return not isinstance(message, _STREAMED)


def error_of(reply: ErrorReply) -> TeengineError:
    """Return the exception that the daemon's error stands for."""
    return error_class(reply.code)(reply.message, hint=reply.hint, retry_after_seconds=reply.retry_after_seconds)


@dataclass(slots=True)
class Mailboxes:
    """One inbox for each open call. Replies to closed or unknown calls are dropped."""

    limit: int = MAX_WAITING_REPLIES
    _inboxes: dict[int, deque[Any]] = field(default_factory=dict[int, deque[Any]])
    _next: int = 1

    def open(self) -> int:
        """Return a correlation number with an empty inbox."""
        correlation = self._next
        self._next += 1
        self._inboxes[correlation] = deque()
        return correlation

    def close(self, correlation: int) -> None:
        """Drop the call and what waits for it. Safe to call twice."""
        self._inboxes.pop(correlation, None)

    def is_open(self, correlation: int) -> bool:
        """Say whether the call still waits for replies."""
        return correlation in self._inboxes

    def deliver(self, envelope: Envelope) -> None:
        """Put a reply where its call finds it; a call whose inbox is full gets an error instead of more."""
        inbox = self._inboxes.get(envelope.correlation)
        if inbox is None or (len(inbox) > self.limit):
            return
        if len(inbox) == self.limit and not is_final(envelope.message):
            full = QueueFull(f"more than {self.limit} replies wait unread", hint="read the stream while it arrives")
            inbox.append(ErrorReply(code=full.code, message=full.message, hint=full.hint, retryable=False))
            return
        inbox.append(envelope.message)

    def fail_all(self, error: TeengineError) -> None:
        """End every open call with `error`: the connection that would have answered is gone."""
        for inbox in self._inboxes.values():
            inbox.append(ErrorReply(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable))

    def take(self, correlation: int) -> Any | None:
        """Return the oldest reply of the call, or None.

        Raises:
            TeengineError: the reply is an error; of the class its code names.
        """
        inbox = self._inboxes.get(correlation)
        if not inbox:
            return None
        message = inbox.popleft()
        if isinstance(message, ErrorReply):
            raise error_of(message)
        return message
