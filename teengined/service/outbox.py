"""What waits for clients that read slowly: bounded for each, and never a wait for everyone else."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import zmq

__all__ = ["Outbox", "Sent"]

# A socket that was full for a burst has room a moment later; one whose client is busy is asked less and less often.
_FIRST_RETRY_SECONDS = 0.001
_LONGEST_RETRY_SECONDS = 0.02


class Sent(Enum):
    """What became of a message."""

    HANDED_OVER = "handed over"
    WAITING = "waiting"
    TOO_SLOW = "too slow"
    GONE = "gone"


@dataclass(slots=True, kw_only=True, eq=False)
class Outbox:
    """Sends without waiting; keeps a bounded number of messages, and of bytes, for a client whose socket is full."""

    send: Callable[[bytes, list[bytes]], None]
    """Sends at once, or raises `zmq.Again` (full) or another `zmq.ZMQError` (gone)."""
    max_pending: int
    max_pending_bytes: int
    max_final: int
    """Final messages kept beyond that: a client that asks and asks without reading would fill the memory."""
    _pending: dict[bytes, deque[list[bytes]]] = field(default_factory=dict[bytes, deque[list[bytes]]])
    _num_bytes: dict[bytes, int] = field(default_factory=dict[bytes, int])
    """Of what waits for each client."""
    _retry: "asyncio.TimerHandle | None" = None
    _retry_seconds: float = _FIRST_RETRY_SECONDS

    def put(self, client: bytes, frames: list[bytes], *, final: bool) -> Sent:
        """Send, or keep for later. Final messages are kept beyond the first bounds: there is one for each call."""
        pending = self._pending.get(client)
        if pending is None:
            outcome = self._try(client, frames)
            if outcome is not Sent.WAITING:
                return outcome
            pending = self._pending[client] = deque()
            self._num_bytes[client] = 0
        if len(pending) >= self.max_pending + (self.max_final if final else 0):
            return Sent.TOO_SLOW
        if not final and self._num_bytes[client] + _size(frames) > self.max_pending_bytes:
            return Sent.TOO_SLOW
        pending.append(frames)
        self._num_bytes[client] += _size(frames)
        self._schedule()
        return Sent.WAITING

    def num_pending(self, client: bytes) -> int:
        """Return how many messages wait for a client."""
        return len(self._pending.get(client, ()))

    def is_full(self, client: bytes) -> bool:
        """Say whether as much waits for a client as may."""
        num_bytes = self._num_bytes.get(client, 0)
        return self.num_pending(client) >= self.max_pending or num_bytes >= self.max_pending_bytes

    @property
    def num_clients(self) -> int:
        """Clients for whom something waits."""
        return len(self._pending)

    def close(self) -> None:
        """Drop what waits."""
        if self._retry is not None:
            self._retry.cancel()
        self._pending.clear()
        self._num_bytes.clear()

    def _try(self, client: bytes, frames: list[bytes]) -> Sent:
        try:
            self.send(client, frames)
        except zmq.Again:
            return Sent.WAITING
        except zmq.ZMQError:
            return Sent.GONE
        return Sent.HANDED_OVER

    def _schedule(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(self._retry_seconds, self._flush)

    def _flush(self) -> None:
        self._retry = None
        num_before = self._num_waiting
        for client, pending in tuple(self._pending.items()):
            self._flush_client(client, pending)
            if not pending:
                del self._pending[client], self._num_bytes[client]
        longer = min(2 * self._retry_seconds, _LONGEST_RETRY_SECONDS)
        self._retry_seconds = longer if self._num_waiting == num_before else _FIRST_RETRY_SECONDS
        if self._pending:
            self._schedule()

    def _flush_client(self, client: bytes, pending: deque[list[bytes]]) -> None:
        while pending:
            outcome = self._try(client, pending[0])
            if outcome is Sent.WAITING:
                return
            if outcome is Sent.GONE:
                pending.clear()
                return
            self._num_bytes[client] -= _size(pending.popleft())

    @property
    def _num_waiting(self) -> int:
        return sum(map(len, self._pending.values()))


def _size(frames: list[bytes]) -> int:
    return sum(map(len, frames))
