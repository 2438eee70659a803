"""Messages of any number of frames, over a real socket."""

import asyncio
import tempfile
from collections.abc import Sequence

import pytest
import zmq
import zmq.asyncio

from teengined.service import frames as frames_module
from teengined.service.frames import receive_frames


def received(messages: Sequence[list[bytes]]) -> tuple[list[list[bytes]], int]:
    """Return what comes of messages, and how often others were let in between meanwhile."""

    async def story() -> tuple[list[list[bytes]], int]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        with tempfile.TemporaryDirectory(prefix="te-") as directory, zmq.asyncio.Context() as context:
            router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
            router.bind(f"ipc://{directory}/s")
            dealer.connect(f"ipc://{directory}/s")
            for message in messages:
                await dealer.send_multipart(message)
            await router.poll()  # The first of them is there, whole.
            other = asyncio.create_task(others())
            await asyncio.sleep(0)
            turns = 0
            found = [[frame.bytes for frame in await receive_frames(router)][1:] for _ in messages]
            other.cancel()
            router.close(linger=0)
            dealer.close(linger=0)
        return found, turns

    return asyncio.run(asyncio.wait_for(story(), 20))


@pytest.mark.parametrize("message", [[b"h", b"body"], [b"h"], [b""], [b"h", b"", b"x"]])
def test_message_of_few_frames_comes_whole(message: list[bytes]):
    assert received([message])[0] == [message]


def test_frames_beyond_the_first_few_are_dropped_and_the_next_message_is_whole():
    found, _ = received([[b"a", b"b", b"c", *[b"x"] * 5000], [b"h", b"body"]])

    assert found == [[b"a", b"b", b"c"], [b"h", b"body"]]


def test_others_are_served_between_thousands_of_frames(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frames_module, "_FRAMES_AT_ONCE", 100)

    _, turns = received([[b"x"] * 5000])

    assert turns >= 50
