"""Messages as they come from the client socket, whatever their senders made of them."""

import asyncio
from typing import Any, cast

import zmq

__all__ = ["receive_frames"]

# Identity, header, body. One more is kept, so that whoever reads them sees that there were too many.
_MAX_FRAMES = 4
# ZeroMQ bounds the size of a frame, not their number: between so many of them, others are served.
_FRAMES_AT_ONCE = 512
_receive_now: Any = cast("Any", zmq.Socket).recv


async def receive_frames(socket: Any) -> list[zmq.Frame]:
    """Return the frames of the next message of an asyncio ROUTER socket, sender first, and the first few only."""
    frames: list[zmq.Frame] = [await socket.recv(copy=False)]
    more, num_frames = frames[0].more, 1
    while more:
        # The rest of a message is there when its beginning is, so this needs no future.
        frame = _receive_now(socket, zmq.DONTWAIT, copy=False)
        more, num_frames = frame.more, num_frames + 1
        if num_frames <= _MAX_FRAMES:
            frames.append(frame)
        if num_frames % _FRAMES_AT_ONCE == 0:
            await asyncio.sleep(0)
    return frames
