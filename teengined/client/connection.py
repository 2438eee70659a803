"""One DEALER socket and its monitor. ZeroMQ reconnects in silence and loses what was under way; the monitor tells."""

import struct
from typing import Any

import zmq

from teengined.client.endpoint import probe
from teengined.core.errors import DaemonUnreachable
from teengined.protocol.codec import CodecLimits
from teengined.protocol.messages import Embed, Score

__all__ = [
    "CONNECT_SECONDS",
    "ENDS_WITH_CALLER",
    "LIMITS",
    "dial",
    "hang_up",
    "is_disconnect",
    "lost_connection",
    "takes_nothing",
]

# A daemon answers `Hello` in milliseconds; under socket activation it starts first, which takes about a second.
CONNECT_SECONDS = 10.0
# Of replies. They may be larger than requests: the plan of a model with many experts names each of its units.
LIMITS = CodecLimits(max_message_bytes=64 << 20)
# First frame of zmq_socket_monitor(3)'s messages: the event's number, then its value. `zmq.utils.monitor` reads it too,
# but brings asyncio along, which costs the command line 30 ms.
_EVENT_NUMBER = struct.Struct("=H")
# Calls that keep the stages at work for their caller alone.
ENDS_WITH_CALLER = (Embed, Score)
_SEND_QUEUE = 64
_RECEIVE_QUEUE = 1000
# How long closing waits for a last `Cancel` to leave.
_LINGER_MILLISECONDS = 200


def dial(context: Any, endpoint: str) -> tuple[Any, Any]:
    """Return a connected DEALER socket and the monitor socket of its disconnections. Both belong to the caller."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, _LINGER_MILLISECONDS)
    socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
    socket.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
    socket.setsockopt(zmq.MAXMSGSIZE, LIMITS.max_message_bytes)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.connect(endpoint)
    return socket, monitor


def hang_up(context: Any, socket: Any, monitor: Any) -> None:
    """Close what `dial` returned, and the context; each may be None."""
    if socket is not None:
        if monitor is not None:
            socket.disable_monitor()
            monitor.close()  # as long as the caller holds it, `term` would wait for it
        socket.close()
    if context is not None:
        context.term()


def is_disconnect(event: Any) -> bool:
    """Say whether a monitor's message (its frames) tells that the connection was lost, with every call under way."""
    (number,) = _EVENT_NUMBER.unpack_from(event[0])
    return number == zmq.EVENT_DISCONNECTED


def lost_connection(endpoint: str) -> DaemonUnreachable:
    """Return the error for calls under way when the connection broke: no daemon any more, or another one."""
    try:
        probe(endpoint)
    except DaemonUnreachable as gone:
        return gone
    return DaemonUnreachable(
        "the daemon closed the connection; it was restarted, or it refused the message",
        hint="send the request again",
    )


def takes_nothing() -> DaemonUnreachable:
    """Return the error for a daemon that reads nothing for as long as it would take to start one."""
    return DaemonUnreachable("the daemon takes no messages", hint="see `journalctl -u teengined`")
