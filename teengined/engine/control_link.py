"""The worker's end of the daemon's private socket: one thread owns the socket, every thread may reply."""

import os
import queue
from collections.abc import Callable
from typing import Any

import zmq

from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.worker_messages import WORKER_MESSAGES

__all__ = ["ControlLink"]

# Replies that may wait for the owning thread: a few for each of the stages that a device can hold.
_MAX_QUEUED_REPLIES = 4096


class ControlLink:
    """Receives the daemon's messages in `serve` and sends what any thread hands to `send`, in order."""

    def __init__(self, endpoint: str, limits: CodecLimits) -> None:
        """Connect to the daemon; ZeroMQ keeps trying in the background until it is there."""
        self._limits = limits
        self._replies: queue.Queue[list[bytes]] = queue.Queue(maxsize=_MAX_QUEUED_REPLIES)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(endpoint)
        self._closing = False

    def send(self, message: Any) -> None:
        """Queue a message for the daemon. From any thread.

        Raises:
            queue.Full: the daemon has not taken thousands of replies; the worker is of no use any more.
        """
        self._replies.put_nowait(encode(Envelope(correlation=0, message=message), WORKER_MESSAGES, self._limits))
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Make `serve` return once the queued replies are sent. From any thread."""
        self._closing = True
        os.eventfd_write(self._wake, 1)

    def serve(self, handle: Callable[[Any], None]) -> None:
        """Pass every message of the daemon to `handle` on this thread, until `stop`."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
            self._send_queued()
            if self._socket in ready:
                frames = self._socket.recv_multipart()
                handle(decode(frames, WORKER_MESSAGES, self._limits).message)
        self._send_queued()

    def close(self) -> None:
        """Close the socket, giving the last replies a second to leave."""
        self._socket.close()
        self._context.term()
        os.close(self._wake)

    def _send_queued(self) -> None:
        while True:
            try:
                frames = self._replies.get_nowait()
            except queue.Empty:
                return
            self._socket.send_multipart(frames)
