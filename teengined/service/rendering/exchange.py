"""What the daemon and the rendering process tell each other, apart from either: the daemon imports no jinja."""

import socket
from dataclasses import dataclass

__all__ = ["FAILED", "RENDERED", "RenderBounds", "receive_all"]

# The first byte of a reply.
RENDERED = b"="
FAILED = b"!"
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderBounds:
    """What one compilation or rendering may take. Published templates need some milliseconds and megabytes."""

    max_characters: int
    """Of the text that it writes."""
    max_question_bytes: int = 64 << 20
    """Of turns, tools and options as JSON: several times the largest message of a client."""
    cpu_seconds: float = 1.0
    """Of processor time, so that a busy machine refuses nothing that an idle one would render."""
    wall_seconds: float = 5.0
    """Of waiting, even for a processor."""
    memory_bytes: int = 256 << 20
    """Beyond what the process has before it begins: a conversation of a million tokens takes some 30 MB."""


def receive_all(stream: socket.socket, max_bytes: int) -> bytes:
    """Return what the other end sends before it closes its half.

    Raises:
        ValueError: it is more than `max_bytes`.
    """
    content = bytearray()
    while chunk := stream.recv(_CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"more than {max_bytes} bytes")
    return bytes(content)
