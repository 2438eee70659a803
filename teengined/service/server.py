"""The client socket: frames in, one task for each call, replies out. Nothing a client sends can stop another's call."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import zmq

from teengined.core.errors import Cancelled, InternalError, MessageTooLarge, ProtocolError, QueueFull, TeengineError
from teengined.protocol.codec import CodecLimits, Envelope, correlation_of, decode, encode
from teengined.protocol.messages import CLIENT_MESSAGES, ErrorReply
from teengined.service.outbox import Outbox, Sent
from teengined.service.settings import ProtocolSettings

__all__ = ["Call", "Handler", "Server", "error_reply"]

logger = logging.getLogger(__name__)

# A reply may be larger than any request is allowed to be: the plan of a model with many experts names each unit.
_REPLY_FACTOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call under way."""

    client: bytes
    correlation: int
    stream: Callable[[Any], None]
    """Send a message that does not end the call, without waiting."""


Handler = Callable[[Call, Any], Awaitable[Any]]
"""Does one call and returns its final message."""


def error_reply(error: TeengineError) -> ErrorReply:
    """Return the message that carries an error."""
    return ErrorReply(
        code=error.code,
        message=error.message,
        hint=error.hint,
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_seconds,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """Serves one bound ROUTER socket. `handlers` maps each request class to what does it."""

    socket: Any
    settings: ProtocolSettings
    handlers: Mapping[type, Handler]
    _limits: CodecLimits = field(init=False)
    _reply_limits: CodecLimits = field(init=False)
    _outbox: Outbox = field(init=False)
    _calls: "dict[bytes, dict[int, asyncio.Task[None]]]" = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Derive the codec's bounds."""
        settings = self.settings
        self._limits = CodecLimits(max_message_bytes=settings.max_message, max_items=settings.max_items)
        self._reply_limits = CodecLimits(
            max_message_bytes=_REPLY_FACTOR * settings.max_message, max_items=settings.max_items
        )
        self._outbox = Outbox(send=self._send_now, max_pending=settings.max_pending, max_final=settings.max_calls)

    async def serve(self) -> None:
        """Take messages until cancelled."""
        while True:
            client, *frames = await self.socket.recv_multipart()
            try:
                self._take(client, frames)
            except Exception:  # One client's message must never end the loop that serves all.
                logger.exception("a message could not be taken")

    async def close(self) -> None:
        """End every call with an error and stop; the socket stays its owner's."""
        tasks = [task for calls in self._calls.values() for task in calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._outbox.close()

    def _take(self, client: bytes, frames: list[bytes]) -> None:
        if self._outbox.num_pending(client) >= self.settings.max_pending:
            # It asks on without reading: an answer would wait too, and a line for each would fill the log instead.
            logger.debug("a request of a client that does not read is dropped")
            return
        try:
            envelope = decode(frames, CLIENT_MESSAGES, self._limits)
            handler = self._admit(client, envelope)
        except TeengineError as error:
            self._reply(client, correlation_of(frames, self._limits), error_reply(error))
            return
        correlation = envelope.correlation
        call = Call(
            client=client,
            correlation=correlation,
            stream=lambda message: self._stream(client, correlation, message),
        )
        task = asyncio.create_task(self._run(call, handler, envelope.message))
        self._calls.setdefault(client, {})[correlation] = task
        task.add_done_callback(lambda _: self._forget(client, correlation))

    def _admit(self, client: bytes, envelope: Envelope) -> Handler:
        kind = cast("type[object]", type(envelope.message))
        handler = self.handlers.get(kind)
        if handler is None:
            raise ProtocolError(f"{kind.__name__} is no request")
        calls = self._calls.get(client)
        if calls is None and len(self._calls) + self._outbox.num_clients >= self.settings.max_clients:
            raise QueueFull(
                f"{self.settings.max_clients} clients have calls under way or do not read", retry_after_seconds=1.0
            )
        if calls is not None and len(calls) >= self.settings.max_calls:
            raise QueueFull(f"{self.settings.max_calls} calls of this client are under way", retry_after_seconds=1.0)
        if calls is not None and envelope.correlation in calls:
            raise ProtocolError(f"call {envelope.correlation} is under way already; choose another number")
        return handler

    async def _run(self, call: Call, handler: Handler, message: Any) -> None:
        try:
            final = await handler(call, message)
        except TeengineError as error:
            final = error_reply(error)
        except asyncio.CancelledError:
            final = error_reply(
                Cancelled("the call was ended by the daemon: this client reads too slowly, or it stops")
            )
        except Exception as error:  # The edge: a mistake of ours becomes an error reply and a log entry.
            logger.exception("%s failed", type(message).__name__)
            final = error_reply(InternalError(f"{type(message).__name__} failed: {type(error).__name__}"))
        self._reply(call.client, call.correlation, final)

    def _forget(self, client: bytes, correlation: int) -> None:
        calls = self._calls.get(client, {})
        calls.pop(correlation, None)
        if not calls:
            self._calls.pop(client, None)

    def _stream(self, client: bytes, correlation: int, message: Any) -> None:
        frames = encode(Envelope(correlation=correlation, message=message), CLIENT_MESSAGES, self._reply_limits)
        outcome = self._outbox.put(client, frames, final=False)
        if outcome in (Sent.TOO_SLOW, Sent.GONE):
            logger.info(
                "a client %s; its calls are cancelled", "reads too slowly" if outcome is Sent.TOO_SLOW else "left"
            )
            for task in self._calls.get(client, {}).values():
                task.cancel()

    def _reply(self, client: bytes, correlation: int, message: Any) -> None:
        try:
            frames = encode(Envelope(correlation=correlation, message=message), CLIENT_MESSAGES, self._reply_limits)
        except MessageTooLarge as error:
            envelope = Envelope(correlation=correlation, message=error_reply(error))
            frames = encode(envelope, CLIENT_MESSAGES, self._reply_limits)
        self._outbox.put(client, frames, final=True)

    def _send_now(self, client: bytes, frames: list[bytes]) -> None:
        self.socket.send_multipart([client, *frames], flags=zmq.DONTWAIT).result()
