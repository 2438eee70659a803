"""The blocking connection: one call after the other, answers as they arrive."""

import contextlib
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

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
from teengined.core.errors import DaemonUnreachable, DeadlineExceeded, ProtocolError
from teengined.protocol import messages as wire
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode

__all__ = ["BlockingConnection", "OnProgress"]

T = TypeVar("T")
OnProgress = Callable[[wire.LoadProgress], None]


class BlockingConnection:
    """What the verbs of `Client` are made of. Reconnects by itself after the daemon was restarted."""

    def __init__(self, endpoint: str | None = None, timeout_seconds: float = 30.0) -> None:
        """Remember where to connect; the first call connects. `endpoint` as in `TEENGINE_HOST`."""
        self.endpoint = endpoint_of(endpoint) if endpoint else default_endpoint()
        self.timeout_seconds = timeout_seconds
        self._mail = Mailboxes()
        self._limits = CodecLimits()
        self._context: zmq.Context[Any] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    def generate(self, request: wire.Generate) -> Generator[AnswerEvent, None, None]:
        """Yield `Accepted`, then each `TokenChunk` once and in order, then `Finished`.

        Leaving the iteration early cancels the request, also one that is not accepted yet.
        """
        request = with_credits(request)
        correlation = self._send(request)
        order, credits_ = AnswerOrder(), Credits(request.credits)
        try:
            while not order.finished:
                event = self._receive(correlation, deadline=None)
                if order.admit(event):
                    yield event
                if isinstance(event, wire.TokenChunk) and (grant := credits_.take(event)):
                    self._send_within(correlation, grant)
        finally:
            self._mail.close(correlation)
            if not order.finished:
                self._leave(correlation, order.request_id)

    def close(self) -> None:
        """Disconnect. Safe to call twice."""
        hang_up(self._context, self._socket, self._monitor)
        self._context = self._socket = self._monitor = None

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect at the end of the context."""
        self.close()

    def _call(self, message: Any, answer: type[T], *, long: bool = False, on_progress: OnProgress | None = None) -> T:
        correlation = self._send(message)
        deadline = None if long else time.monotonic() + self.timeout_seconds
        try:
            while not is_final(reply := self._receive(correlation, deadline=deadline)):
                if on_progress is not None and isinstance(reply, wire.LoadProgress):
                    on_progress(reply)
        except KeyboardInterrupt:
            if isinstance(message, ENDS_WITH_CALLER):
                self._leave(correlation)
            raise
        finally:
            self._mail.close(correlation)
        if not isinstance(reply, answer):
            raise ProtocolError(f"expected {answer.__name__}, got {type(reply).__name__}")
        return reply

    def _send(self, message: Any) -> int:
        self._connected()
        correlation = self._mail.open()
        try:
            self._send_within(correlation, message)
        except BaseException:
            self._mail.close(correlation)
            raise
        return correlation

    def _send_within(self, correlation: int, message: Any) -> None:
        """Send a message of a call. One that belongs to a connection that is lost is lost with it."""
        if self._socket is None:
            return
        frames = encode(Envelope(correlation=correlation, message=message), wire.CLIENT_MESSAGES, self._limits)
        # A burst of calls fills the queue for a moment.
        if not self._socket.poll(int(CONNECT_SECONDS * 1000), zmq.POLLOUT):
            raise takes_nothing()
        self._socket.send_multipart(frames, flags=zmq.DONTWAIT)

    def _leave(self, correlation: int, request_id: str = "") -> None:
        """Cancel a request by its name; by its call, where it has none yet."""
        if self._socket is None:
            return
        with contextlib.suppress(DaemonUnreachable):
            if request_id:
                self._mail.close(self._send(wire.Cancel(request_id=request_id)))
            else:
                self._send_within(correlation, wire.Cancel())

    def _connected(self) -> None:
        if self._socket is None:
            probe(self.endpoint)
            self._context = zmq.Context()
            self._socket, self._monitor = dial(self._context, self.endpoint)
            try:
                self._ping()
            except BaseException:
                self.close()
                raise

    def _ping(self) -> None:
        correlation = self._send(wire.Hello(client=f"teengined.client {__version__}"))
        try:
            welcome = self._receive(correlation, deadline=time.monotonic() + CONNECT_SECONDS)
            self._limits = CodecLimits(max_message_bytes=welcome.max_message_bytes)
        except DeadlineExceeded as error:
            raise DaemonUnreachable(
                f"the daemon at {self.endpoint.removeprefix('ipc://')} accepts connections but does not answer",
                hint="see `journalctl -u teengined`; restart it with `systemctl restart teengined`",
            ) from error
        finally:
            self._mail.close(correlation)

    def _receive(self, correlation: int, *, deadline: float | None) -> Any:
        """Return the next reply of a call. Without a deadline, ask after each silence whether the daemon lives."""
        while (message := self._mail.take(correlation)) is None:
            silence_ends = time.monotonic() + self.timeout_seconds if deadline is None else deadline
            if self._pump(silence_ends):
                continue
            if deadline is not None:
                raise DeadlineExceeded(f"no answer within {self.timeout_seconds:g} s", hint="see `teengine status`")
            self._ping()
        return message

    def _pump(self, until: float) -> bool:
        """Deliver what arrives first, before `until` (monotonic); False when nothing did."""
        if self._socket is None or self._monitor is None:
            raise DaemonUnreachable("this client is closed")
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        ready = dict(poller.poll(1 + int(max(0.0, until - time.monotonic()) * 1000)))
        if self._socket in ready:
            self._mail.deliver(decode(self._socket.recv_multipart(), wire.CLIENT_MESSAGES, LIMITS))
            return True
        if self._monitor in ready:
            if is_disconnect(self._monitor.recv_multipart()):
                self._mail.fail_all(lost_connection(self.endpoint))
                self.close()  # The next call connects anew, and learns at once if nobody is there.
            return True
        return False
