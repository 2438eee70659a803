"""The connection of the asyncio client: any number of calls at once."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq
import zmq.asyncio

from teengined import __version__
from teengined.client.answer import AnswerEvent, AnswerOrder
from teengined.client.connection import (
    CONNECT_SECONDS,
    ENDS_WITH_CALLER,
    LIMITS,
    dial,
    hang_up,
    is_disconnect,
    lost_connection,
    takes_nothing,
)
from teengined.client.credits import Credits, with_credits
from teengined.client.endpoint import default_endpoint, endpoint_of, probe
from teengined.client.mailboxes import Mailboxes, is_final
from teengined.core.errors import DaemonUnreachable, DeadlineExceeded, ProtocolError, TeengineError
from teengined.protocol import messages as wire
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode

__all__ = ["AsyncConnection", "OnProgress"]

T = TypeVar("T")
OnProgress = Callable[[wire.LoadProgress], None]


class AsyncConnection:
    """What the verbs of `AsyncClient` are made of. Reconnects by itself after the daemon was restarted."""

    def __init__(self, endpoint: str | None = None, timeout_seconds: float = 30.0) -> None:
        """Remember where to connect; the first call connects. `endpoint` as in `TEENGINE_HOST`."""
        self.endpoint = endpoint_of(endpoint) if endpoint else default_endpoint()
        self.timeout_seconds = timeout_seconds
        self._mail = Mailboxes()
        self._limits = CodecLimits()
        self._arrived: dict[int, asyncio.Event] = {}
        self._context: zmq.asyncio.Context | None = None
        self._socket: Any = None
        self._monitor: Any = None
        self._readers: list[asyncio.Task[None]] = []
        self._lost = False

    async def generate(self, request: wire.Generate) -> AsyncGenerator[AnswerEvent, None]:
        """Yield `Accepted`, then each `TokenChunk` once and in order, then `Finished`.

        Leaving the iteration early (and closing the iterator, which `contextlib.aclosing` does) cancels the request,
        also one that is not accepted yet.
        """
        request = with_credits(request)
        correlation = await self._send(request)
        order, credits_ = AnswerOrder(), Credits(request.credits)
        try:
            while not order.finished:
                event = await self._receive_patiently(correlation)
                if order.admit(event):
                    yield event
                if isinstance(event, wire.TokenChunk) and (grant := credits_.take(event)):
                    await self._send_within(correlation, grant)
        finally:
            self._close_call(correlation)
            if not order.finished and self._socket is not None:
                with contextlib.suppress(DaemonUnreachable):
                    await self._leave(correlation, order.request_id)

    async def close(self) -> None:
        """Disconnect; calls under way fail. Safe to call twice."""
        self._fail_all(DaemonUnreachable("this client was closed"))
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        hang_up(self._context, self._socket, self._monitor)
        self._readers = []
        self._lost = False
        self._context = self._socket = self._monitor = None

    async def __aenter__(self) -> Self:
        """Use as a context."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect at the end of the context."""
        await self.close()

    async def _call(
        self, message: Any, answer: type[T], *, long: bool = False, on_progress: OnProgress | None = None
    ) -> T:
        correlation = await self._send(message)
        try:
            async with asyncio.timeout(None if long else self.timeout_seconds):
                while not is_final(reply := await self._receive_patiently(correlation)):
                    if on_progress is not None and isinstance(reply, wire.LoadProgress):
                        on_progress(reply)
        except asyncio.CancelledError:
            if isinstance(message, ENDS_WITH_CALLER):
                with contextlib.suppress(DaemonUnreachable):
                    await self._leave(correlation)
            raise
        except TimeoutError as error:
            late = f"no answer within {self.timeout_seconds:g} s"
            raise DeadlineExceeded(late, hint="see `teengine status`") from error
        finally:
            self._close_call(correlation)
        if not isinstance(reply, answer):
            raise ProtocolError(f"expected {answer.__name__}, got {type(reply).__name__}")
        return reply

    async def _leave(self, correlation: int, request_id: str = "") -> None:
        """Cancel a request by its name; by its call, where it has none yet."""
        if request_id:
            self._close_call(await self._send(wire.Cancel(request_id=request_id)))
        else:
            await self._send_within(correlation, wire.Cancel())

    async def _send(self, message: Any) -> int:
        await self._connect()
        return await self._send_now(message)

    async def _send_now(self, message: Any) -> int:
        if self._socket is None:
            raise DaemonUnreachable("this client was closed")
        correlation = self._mail.open()
        self._arrived[correlation] = asyncio.Event()
        try:
            await self._send_within(correlation, message)
        except BaseException:
            self._close_call(correlation)
            raise
        return correlation

    async def _send_within(self, correlation: int, message: Any) -> None:
        """Send a message of a call. One that belongs to a connection that is lost is lost with it."""
        if self._socket is None:
            return
        frames = encode(Envelope(correlation=correlation, message=message), wire.CLIENT_MESSAGES, self._limits)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):  # A burst of calls fills the queue for a moment.
                await self._socket.send_multipart(frames)
        except TimeoutError as error:
            raise takes_nothing() from error

    def _close_call(self, correlation: int) -> None:
        self._mail.close(correlation)
        self._arrived.pop(correlation, None)

    async def _connect(self) -> None:
        if self._lost:
            await self.close()
        if self._socket is not None:
            return
        probe(self.endpoint)
        self._context = zmq.asyncio.Context()
        self._socket, self._monitor = dial(self._context, self.endpoint)
        self._readers = [asyncio.create_task(self._read_replies()), asyncio.create_task(self._watch_connection())]
        try:
            await self._ping()
        except BaseException:
            await self.close()
            raise

    async def _ping(self) -> None:
        correlation = await self._send_now(wire.Hello(client=f"teengined.client {__version__}"))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                welcome = await self._receive(correlation)
                self._limits = CodecLimits(max_message_bytes=welcome.max_message_bytes)
        except TimeoutError as error:
            raise DaemonUnreachable(
                f"the daemon at {self.endpoint.removeprefix('ipc://')} accepts connections but does not answer",
                hint="see `journalctl -u teengined`; restart it with `systemctl restart teengined`",
            ) from error
        finally:
            self._close_call(correlation)

    async def _receive_patiently(self, correlation: int) -> Any:
        """Return the next reply, asking after each silence whether the daemon lives."""
        while True:
            receiving = asyncio.timeout(self.timeout_seconds)
            with contextlib.suppress(TimeoutError):
                async with receiving:
                    return await self._receive(correlation)
            await self._ping()

    async def _receive(self, correlation: int) -> Any:
        arrived = self._arrived[correlation]
        while (message := self._mail.take(correlation)) is None:
            arrived.clear()
            await arrived.wait()
        return message

    async def _read_replies(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            try:
                envelope = decode(frames, wire.CLIENT_MESSAGES, LIMITS)
            except ProtocolError as error:
                self._fail_all(error)
                continue
            self._mail.deliver(envelope)
            if arrived := self._arrived.get(envelope.correlation):
                arrived.set()

    async def _watch_connection(self) -> None:
        while True:
            if is_disconnect(await self._monitor.recv_multipart()):
                await asyncio.sleep(0)  # Replies that arrived before the connection broke go first.
                self._fail_all(lost_connection(self.endpoint))
                self._lost = True  # The next call connects anew, and learns at once if nobody is there.
                return

    def _fail_all(self, error: TeengineError) -> None:
        self._mail.fail_all(error)
        for arrived in self._arrived.values():
            arrived.set()
