import asyncio

import zmq

from teengined.service.outbox import Outbox, Sent


class Wire:
    """A socket that is full, gone, or takes what it gets."""

    def __init__(self) -> None:
        self.error: zmq.ZMQError | None = None
        self.sent: list[bytes] = []

    def send(self, client: bytes, frames: list[bytes]) -> None:
        if self.error is not None:
            raise self.error
        self.sent += frames


async def empty(outbox: Outbox) -> None:
    while outbox.num_pending(b"client"):  # noqa: ASYNC110 - the outbox tells nobody
        await asyncio.sleep(0.001)


def put(outbox: Outbox, content: bytes, final: bool = False) -> Sent:
    return outbox.put(b"client", [content], final=final)


def test_message_goes_out_at_once_where_there_is_room():
    wire = Wire()

    assert put(Outbox(send=wire.send, max_pending=2, max_pending_bytes=100, max_final=1), b"a") is Sent.HANDED_OVER
    assert wire.sent == [b"a"]


def test_messages_wait_in_order_and_follow_when_there_is_room():
    async def story() -> list[bytes]:
        wire = Wire()
        outbox = Outbox(send=wire.send, max_pending=2, max_pending_bytes=100, max_final=1)
        wire.error = zmq.Again()
        put(outbox, b"a")
        wire.error = None
        put(outbox, b"b")
        await empty(outbox)
        return wire.sent

    assert asyncio.run(story()) == [b"a", b"b"]


def test_client_beyond_its_bound_is_too_slow_but_still_gets_its_final_messages():
    async def story() -> list[Sent]:
        wire = Wire()
        wire.error = zmq.Again()
        outbox = Outbox(send=wire.send, max_pending=2, max_pending_bytes=100, max_final=1)
        outcomes = [put(outbox, b"a"), put(outbox, b"b"), put(outbox, b"c"), put(outbox, b"end", final=True)]
        outcomes.append(put(outbox, b"one more", final=True))
        outbox.close()
        return outcomes

    assert asyncio.run(story()) == [Sent.WAITING, Sent.WAITING, Sent.TOO_SLOW, Sent.WAITING, Sent.TOO_SLOW]


def test_client_that_left_is_forgotten_with_all_that_waited():
    async def story() -> tuple[Sent, int]:
        wire = Wire()
        wire.error = zmq.Again()
        outbox = Outbox(send=wire.send, max_pending=2, max_pending_bytes=100, max_final=1)
        put(outbox, b"a")
        wire.error = zmq.ZMQError(zmq.EHOSTUNREACH)
        await empty(outbox)
        return put(outbox, b"b"), outbox.num_pending(b"client")

    assert asyncio.run(story()) == (Sent.GONE, 0)


def test_bytes_that_wait_are_bounded_and_counted_down_when_they_leave():
    async def story() -> list[object]:
        wire = Wire()
        wire.error = zmq.Again()
        outbox = Outbox(send=wire.send, max_pending=9, max_pending_bytes=100, max_final=1)
        told: list[object] = [put(outbox, b"x" * 60), put(outbox, b"x" * 41), outbox.is_full(b"client")]
        told += [put(outbox, b"x" * 40), outbox.is_full(b"client"), put(outbox, b"end", final=True)]
        wire.error = None
        await empty(outbox)
        wire.error = zmq.Again()
        told += [put(outbox, b"x" * 100), outbox.is_full(b"other")]
        outbox.close()
        return told

    sent = [Sent.WAITING, Sent.TOO_SLOW, False, Sent.WAITING, True, Sent.WAITING, Sent.WAITING, False]
    assert asyncio.run(story()) == sent
