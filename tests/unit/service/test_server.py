"""Clients that flood, leave or say a word in between: what waits for them is bounded, and they are found out."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import zmq

from teengined.core.errors import error_class
from teengined.core.plan import Tier, UnitPlacement
from teengined.core.request import FinishReason, TokenLogprobs, Usage
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.messages import (
    CLIENT_MESSAGES,
    Cancel,
    DeploymentList,
    Done,
    Finished,
    GetStatus,
    Grant,
    ListModels,
)
from teengined.service import server as server_module
from teengined.service.server import HandlerTable, Server
from teengined.service.settings import ProtocolSettings
from tests.unit.cli.test_listing_verbs import DEPLOYMENT

SETTINGS = ProtocolSettings(max_pending=4, max_calls=2, probe_interval=0.02)


def frames(correlation: int, message: object) -> list[bytes]:
    return encode(Envelope(correlation=correlation, message=message), CLIENT_MESSAGES, CodecLimits())


class OneClient:
    """A socket whose one client sends `messages` and reads only while it `listens`; it may have left."""

    def __init__(self, messages: list[list[bytes]]) -> None:
        self.messages = messages
        self.error: Exception | None = None
        self.heard: list[Envelope] = []
        self.num_refused = 0

    async def receive(self) -> list[zmq.Frame]:
        if not self.messages:
            await asyncio.Event().wait()
        return [zmq.Frame(part) for part in [b"client", *self.messages.pop(0)]]

    def send_multipart(self, content: list[bytes], flags: int) -> "asyncio.Future[None]":
        if self.error is not None:
            self.num_refused += 1
            raise self.error
        self.heard.append(decode(content[1:], CLIENT_MESSAGES, CodecLimits()))
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    @property
    def replies(self) -> list[Envelope]:
        return [envelope for envelope in self.heard if envelope.correlation]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.001)


async def serve(client: OneClient, handlers: HandlerTable, story: Callable[[Server], Awaitable[object]]) -> None:
    """Run a story beside the server."""
    server = Server(socket=client, settings=SETTINGS, handlers=handlers, receive=OneClient.receive)
    serving = asyncio.create_task(server.serve())
    try:
        await story(server)
    finally:
        serving.cancel()
        await server.close()


def handlers(
    call: Callable[..., Awaitable[Any]] | None = None, word: Callable[..., None] | None = None
) -> HandlerTable:
    calls: dict[type, Callable[..., Awaitable[Any]]] = {} if call is None else {GetStatus: call}
    return HandlerTable(calls=calls, words={} if word is None else {Grant: word})


def test_errors_for_a_client_that_does_not_read_are_bounded():
    client = OneClient([[b"no message"]] * 1000)
    client.error = zmq.Again()

    async def story(_server: Server) -> None:
        await until(lambda: not client.messages)
        client.error = None
        await until(lambda: client.heard)
        await asyncio.sleep(0)

    asyncio.run(serve(client, handlers(), story))

    assert len(client.heard) == SETTINGS.max_pending


def test_a_client_that_left_while_its_call_waits_is_found_by_the_probe():
    ended = asyncio.Event()

    async def wait_for_ever(_call, _message) -> Done:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Done()

    client = OneClient([frames(1, GetStatus())])

    async def story(_server: Server) -> None:
        await until(lambda: client.heard)  # It is probed while it is there.
        assert not ended.is_set()
        client.error = zmq.ZMQError(zmq.EHOSTUNREACH)
        async with asyncio.timeout(20):
            await ended.wait()

    asyncio.run(serve(client, handlers(wait_for_ever), story))


def test_a_client_that_is_there_and_does_not_read_for_a_moment_is_left_alone():
    go_on = asyncio.Event()

    async def wait(_call, _message) -> Done:
        await go_on.wait()
        return Done()

    client = OneClient([frames(1, GetStatus())])

    async def story(_server: Server) -> None:
        client.error = zmq.Again()
        await until(lambda: client.num_refused > 3)
        client.error = None
        go_on.set()
        await until(lambda: client.replies)

    asyncio.run(serve(client, handlers(wait), story))

    assert client.replies[0].message == Done()


def test_a_word_within_a_call_is_heard_and_not_answered():
    heard: list[tuple[bytes, object]] = []
    grant = Grant(request_id="r", chunks=3)
    client = OneClient([frames(7, grant), frames(8, ListModels())])

    async def story(_server: Server) -> None:
        await until(lambda: client.replies)

    asyncio.run(serve(client, handlers(word=lambda *said: heard.append(said)), story))

    assert heard == [(b"client", grant)]
    assert [envelope.correlation for envelope in client.replies] == [8]


def test_a_client_that_streams_beyond_its_bound_is_told_that_it_is_too_slow():
    client = OneClient([frames(1, GetStatus())])

    async def flood(call, _message) -> Done:
        client.error = zmq.Again()
        for _ in range(SETTINGS.max_pending + 1):
            call.stream(Done())
        await asyncio.Event().wait()
        return Done()

    async def story(_server: Server) -> None:
        await until(lambda: client.error)
        client.error = None
        await until(lambda: len(client.replies) > SETTINGS.max_pending)

    asyncio.run(serve(client, handlers(flood), story))

    assert error_class(client.replies[-1].message.code).__name__ == "SlowReader"


def test_a_call_that_its_client_leaves_ends_and_others_go_on():
    begun = asyncio.Event()
    cancelled: list[int] = []

    async def wait_for_ever(call, _message) -> Done:
        try:
            if call.correlation == 2:
                begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(call.correlation)
            raise
        return Done()

    client = OneClient([frames(1, GetStatus()), frames(2, GetStatus())])

    async def story(server: Server) -> None:
        await begun.wait()
        server._take(b"client", frames(1, Cancel()), "")
        server._take(b"client", frames(7, Cancel()), "")
        await until(lambda: client.replies)
        assert cancelled == [1]

    asyncio.run(serve(client, handlers(wait_for_ever), story))

    assert (client.replies[0].correlation, client.replies[0].message.message) == (1, "the call was left by its client")


def test_a_call_that_is_left_before_it_begins_is_told_so():
    async def never(_call, _message) -> Done:
        raise AssertionError("it was left before")

    client = OneClient([])

    async def story(server: Server) -> None:
        server._take(b"client", frames(1, GetStatus()), "")
        server._take(b"client", frames(1, Cancel()), "")
        await until(lambda: client.replies)

    asyncio.run(serve(client, handlers(never), story))

    assert client.replies[0].message.code == "cancelled"


def finished_telling(num_told: int) -> Finished:
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=1,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        streamed_bytes=0,
        bound_seconds_per_token=0.0,
    )
    told = (TokenLogprobs(token_id=1, logprob=-1.0),) * num_told
    return Finished(request_id="r", sequence=0, reason=FinishReason.STOP, usage=usage, prompt_logprobs=told)


def deployment_placing(num_units: int) -> DeploymentList:
    units = (UnitPlacement(unit_id="layer.0", tier=Tier.DISK),) * num_units
    plan = replace(DEPLOYMENT.plan, stages=(replace(DEPLOYMENT.plan.stages[0], units=units),))
    return DeploymentList(deployments=(replace(DEPLOYMENT, plan=plan),))


@pytest.mark.parametrize("telling", [finished_telling, deployment_placing])
@pytest.mark.parametrize("num_told", [1, 1000])
def test_a_reply_that_tells_much_is_encoded_beside_the_loop(
    num_told: int, telling: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
):
    threads: list[threading.Thread] = []
    reply = telling(num_told)

    def watched(*arguments: Any) -> list[bytes]:
        threads.append(threading.current_thread())
        return encode(*arguments)

    async def finish(_call, _message) -> Any:
        return reply

    client = OneClient([frames(1, GetStatus())])

    async def story(_server: Server) -> None:
        await until(lambda: client.replies)

    monkeypatch.setattr(server_module, "encode", watched)
    asyncio.run(serve(client, handlers(finish), story))

    assert client.replies[0].message == reply
    assert (threads[0] is threading.main_thread()) == (num_told == 1)
