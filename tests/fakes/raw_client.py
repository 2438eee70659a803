"""A client without a library: sends what it is told, reads only when it is told, and leaves without a word."""

from types import TracebackType
from typing import Any, Self

import zmq

from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.messages import CLIENT_MESSAGES, ErrorReply, Finished

__all__ = ["RawClient"]

WAIT_MILLISECONDS = 20_000


class RawClient:
    """One DEALER socket."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVTIMEO, WAIT_MILLISECONDS)
        self._socket.connect(endpoint)

    def send(self, message: Any, correlation: int = 1) -> None:
        """Send a message of a call."""
        envelope = Envelope(correlation=correlation, message=message)
        self._socket.send_multipart(encode(envelope, CLIENT_MESSAGES, CodecLimits()))

    def receive(self) -> Any:
        """Return the next message of any call; probes are dropped, as every client drops them."""
        while True:
            envelope = decode(self._socket.recv_multipart(), CLIENT_MESSAGES, CodecLimits())
            if envelope.correlation:
                return envelope.message

    def receive_to_the_end(self) -> list[Any]:
        """Return the messages up to the final one of a `Generate`."""
        messages = [self.receive()]
        while not isinstance(messages[-1], (Finished, ErrorReply)):
            messages.append(self.receive())
        return messages

    def has_more(self) -> bool:
        """Whether something other than probes is there already."""
        while self._socket.poll(0):
            if decode(self._socket.recv_multipart(), CLIENT_MESSAGES, CodecLimits()).correlation:
                return True
        return False

    def leave(self) -> None:
        """Vanish. Safe to call twice."""
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
