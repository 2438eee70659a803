"""The client socket: frames in, one task for each call, replies out. Nothing a client sends can stop another's call."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import zmq

from teengined.core.errors import (
    Cancelled,
    InternalError,
    MessageTooLarge,
    ProtocolError,
    QueueFull,
    SlowReader,
    TeengineError,
)
from teengined.protocol.codec import CodecLimits, Envelope, correlation_of, decode, encode
from teengined.protocol.messages import (
    CLIENT_MESSAGES,
    Cancel,
    DeploymentList,
    Done,
    ErrorReply,
    Finished,
    Loaded,
    PlanReply,
    Scored,
    Status,
)
from teengined.service.admission import owner_of
from teengined.service.detached_threads import DetachedThreads
from teengined.service.frames import receive_frames
from teengined.service.metrics.call_meter import SocketMeter
from teengined.service.outbox import Outbox, Sent
from teengined.service.seldom import Seldom
from teengined.service.settings import ProtocolSettings

__all__ = ["Call", "Handler", "HandlerTable", "Server", "Word", "error_reply"]

logger = logging.getLogger(__name__)

# Tokens that a reply tells of, each with its alternatives: more take longer to encode than a token to compute.
_MANY_TOLD = 256
# Units that plans in a reply place: each takes about a microsecond to encode.
_MANY_UNITS = 512
_LEAVE = Cancel()
_LEFT = "left by its client"
# A message that answers nothing, for no call: clients drop it, and the socket of one that left refuses it.
_PROBE = encode(Envelope(correlation=0, message=Done()), CLIENT_MESSAGES, CodecLimits())


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call under way."""

    client: bytes
    owner: str
    """Whose process it came from."""
    correlation: int
    stream: Callable[[Any], None]
    """Send a message that does not end the call, without waiting."""


Handler = Callable[[Call, Any], Awaitable[Any]]
"""Does one call and returns its final message."""
Word = Callable[[bytes, Any], None]
"""Takes a message within a call, with the client that sent it. It is not answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerTable:
    """What may be sent, by its class, and what does it."""

    calls: Mapping[type, Handler]
    words: Mapping[type, Word]


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
    """Serves one bound ROUTER socket."""

    socket: Any
    settings: ProtocolSettings
    handlers: HandlerTable
    meter: SocketMeter = field(default_factory=SocketMeter)
    receive: Callable[[Any], Awaitable[list[zmq.Frame]]] = receive_frames
    _limits: CodecLimits = field(init=False)
    _reply_limits: CodecLimits = field(init=False)
    _outbox: Outbox = field(init=False)
    _encoding: DetachedThreads = field(init=False, default_factory=lambda: DetachedThreads(1))
    _calls: "dict[bytes, dict[int, asyncio.Task[None]]]" = field(init=False, default_factory=dict)
    _seldom: Seldom = field(init=False, default_factory=lambda: Seldom(logger, logging.INFO))
    _too_slow: set[bytes] = field(init=False, default_factory=set[bytes])
    """Clients whose calls are being ended because they do not read."""

    def __post_init__(self) -> None:
        """Derive the codec's bounds."""
        settings = self.settings
        self._limits = CodecLimits(
            max_message_bytes=settings.max_message,
            max_items=settings.max_items,
            max_structures=settings.max_structures,
        )
        self._reply_limits = CodecLimits(max_message_bytes=settings.max_reply_bytes, max_items=settings.max_items)
        self._outbox = Outbox(
            send=self._send_now,
            max_pending=settings.max_pending,
            max_pending_bytes=settings.max_pending_bytes,
            max_final=settings.max_calls,
        )

    async def serve(self) -> None:
        """Take messages until cancelled."""
        probing = asyncio.create_task(self._probe())
        try:
            while True:
                frames = await self.receive(self.socket)
                client, content = frames[0].bytes, [frame.bytes for frame in frames[1:]]
                try:
                    self._take(client, content, _peer_address(frames[-1]))
                except Exception:  # One client's message must never end the loop that serves all.
                    logger.exception("a message could not be taken")
        finally:
            probing.cancel()

    async def close(self) -> None:
        """End every call with an error and stop; the socket stays its owner's."""
        tasks = [task for calls in self._calls.values() for task in calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._outbox.close()

    def _take(self, client: bytes, frames: list[bytes], peer_address: str) -> None:
        if self._outbox.is_full(client):
            # It asks on without reading: an answer would wait too, and a line for each would fill the log instead.
            logger.debug("a request of a client that does not read is dropped")
            return
        try:
            envelope = decode(frames, CLIENT_MESSAGES, self._limits)
            if word := self.handlers.words.get(cast("type[object]", type(envelope.message))):
                word(client, envelope.message)
                return
            if envelope.message == _LEAVE:
                self._end_call(client, envelope.correlation)
                return
            handler = self._admit(client, envelope)
        except TeengineError as error:
            self.meter.note_refused(error.code)
            self._reply(client, correlation_of(frames, self._limits), error_reply(error))
            return
        correlation = envelope.correlation
        call = Call(
            client=client,
            owner=owner_of(peer_address, client),
            correlation=correlation,
            stream=lambda message: self._stream(client, correlation, message),
        )
        task = asyncio.create_task(self._run(call, handler, envelope.message))
        self._calls.setdefault(client, {})[correlation] = task
        self.meter.num_calls += 1
        task.add_done_callback(lambda task: self._forget(client, correlation, task))

    def _admit(self, client: bytes, envelope: Envelope) -> Handler:
        kind = cast("type[object]", type(envelope.message))
        handler = self.handlers.calls.get(kind)
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
        start = time.monotonic()
        try:
            final = await handler(call, message)
        except TeengineError as error:
            final = error_reply(error)
        except asyncio.CancelledError as ended:
            final = error_reply(self._why_ended(call.client, ended))
        except Exception as error:  # The edge: a mistake of ours becomes an error reply and a log entry.
            logger.exception("%s failed", type(message).__name__)
            final = error_reply(InternalError(f"{type(message).__name__} failed: {type(error).__name__}"))
        self.meter.note_end(message, final, time.monotonic() - start)
        if _is_large(final):
            await self._reply_beside(call, final)
        else:
            self._reply(call.client, call.correlation, final)

    def _end_call(self, client: bytes, correlation: int) -> None:
        """End a call whose caller leaves it; one that is over already is not missed."""
        if task := self._calls.get(client, {}).get(correlation):
            task.cancel(_LEFT)

    def _forget(self, client: bytes, correlation: int, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # Before it began: nobody has told the caller.
            self._reply(client, correlation, error_reply(Cancelled("the call was ended before it began")))
        self.meter.num_calls -= 1
        calls = self._calls.get(client, {})
        calls.pop(correlation, None)
        if not calls:
            self._calls.pop(client, None)
            self._too_slow.discard(client)

    def _stream(self, client: bytes, correlation: int, message: Any) -> None:
        frames = encode(Envelope(correlation=correlation, message=message), CLIENT_MESSAGES, self._reply_limits)
        outcome = self._outbox.put(client, frames, final=False)
        if outcome in (Sent.TOO_SLOW, Sent.GONE):
            self._cut_off(client, outcome)

    def _cut_off(self, client: bytes, outcome: Sent) -> None:
        """End the calls of a client that left, or does not read."""
        why = "reads too slowly" if outcome is Sent.TOO_SLOW else "left"
        self._seldom.tell(f"a client {why}; its calls are cancelled")
        if outcome is Sent.TOO_SLOW and client not in self._too_slow:
            self._too_slow.add(client)
            self.meter.num_slow_readers += 1
        for task in self._calls.get(client, {}).values():
            task.cancel()

    def _why_ended(self, client: bytes, ended: asyncio.CancelledError) -> TeengineError:
        if ended.args == (_LEFT,):
            return Cancelled(f"the call was {_LEFT}")
        if client in self._too_slow:
            return SlowReader("this client reads its answers too slowly", hint="read them while they arrive")
        return Cancelled("the call was ended by the daemon, which stops")

    async def _probe(self) -> None:
        """Find clients that left while their calls wait: nothing would be sent to them for as long as that lasts."""
        while True:
            await asyncio.sleep(self.settings.probe_interval)
            for client in tuple(self._calls):
                try:
                    self._send_now(client, _PROBE)
                except zmq.Again:
                    pass  # It is there, and does not read.
                except zmq.ZMQError:
                    self._cut_off(client, Sent.GONE)

    async def _reply_beside(self, call: Call, message: Any) -> None:
        """As `_reply`, for what takes a while to encode, in which others are served."""
        try:
            frames = await self._encoding.run(lambda: self._final_frames(call.correlation, message))
        except asyncio.CancelledError as ended:
            self._reply(call.client, call.correlation, error_reply(self._why_ended(call.client, ended)))
        except RuntimeError:  # There is no thread to be had.
            self._reply(call.client, call.correlation, message)
        else:
            self._outbox.put(call.client, frames, final=True)

    def _reply(self, client: bytes, correlation: int, message: Any) -> None:
        self._outbox.put(client, self._final_frames(correlation, message), final=True)

    def _final_frames(self, correlation: int, message: Any) -> list[bytes]:
        try:
            return encode(Envelope(correlation=correlation, message=message), CLIENT_MESSAGES, self._reply_limits)
        except MessageTooLarge as error:
            envelope = Envelope(correlation=correlation, message=error_reply(error))
            return encode(envelope, CLIENT_MESSAGES, self._reply_limits)

    def _send_now(self, client: bytes, frames: list[bytes]) -> None:
        self.socket.send_multipart([client, *frames], flags=zmq.DONTWAIT).result()


def _is_large(message: Any) -> bool:
    """Say whether a reply may take long to encode."""
    match message:
        case Finished():
            return len(message.prompt_logprobs) > _MANY_TOLD
        case Scored():
            return len(message.logprobs) > _MANY_TOLD
        case DeploymentList() | Status():
            plans = [deployment.plan for deployment in message.deployments]
            return sum(len(stage.units) for plan in plans for stage in plan.stages) > _MANY_UNITS
        case _:
            return isinstance(message, (PlanReply, Loaded))


def _peer_address(frame: Any) -> str:
    """Return whom a frame came from, as ZeroMQ tells it."""
    try:
        return str(frame.get("Peer-Address"))
    except (zmq.ZMQError, KeyError):  # Not every transport knows.
        return ""
