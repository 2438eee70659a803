"""Clients that flood: what waits for them is bounded."""

import asyncio

import zmq

from teengined.service.server import Server
from teengined.service.settings import ProtocolSettings

SETTINGS = ProtocolSettings(max_pending=4, max_calls=2)


class DeafClient:
    """A socket whose one client sends `num_messages` and reads only what it gets after `listen`."""

    def __init__(self, num_messages: int) -> None:
        self.left = num_messages
        self.listens = False
        self.heard: list[list[bytes]] = []

    async def recv_multipart(self) -> list[bytes]:
        if not self.left:
            await asyncio.Event().wait()
        self.left -= 1
        return [b"deaf", b"no message"]

    def send_multipart(self, frames: list[bytes], flags: int) -> "asyncio.Future[None]":
        if not self.listens:
            raise zmq.Again
        self.heard.append(frames)
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent


def test_errors_for_a_client_that_does_not_read_are_bounded():
    async def story() -> int:
        client = DeafClient(num_messages=1000)
        server = Server(socket=client, settings=SETTINGS, handlers={})
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        client.listens = True
        while not client.heard:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.001)
        serving.cancel()
        await server.close()
        return len(client.heard)

    assert asyncio.run(story()) == SETTINGS.max_pending
