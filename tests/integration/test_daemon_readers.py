"""A real daemon with the fake worker: readers that are slow, stop, leave or cancel, at any point of a request."""

import asyncio
import contextlib
import random
from collections.abc import Generator, Iterator

import pytest

from teengined.client import AnswerEvent, AsyncClient, Client
from teengined.core.errors import UnknownRequest
from teengined.core.request import FinishReason
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Accepted, Cancel, Done, ErrorReply, Finished, Generate, Grant, TokenChunk
from tests.fakes.raw_client import RawClient
from tests.fakes.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.system
SETTINGS = """
[limits]
max_waiting = 64
[batching]
max_running = 2
max_stream_buffer = "1KiB"
[streaming]
max_step_tokens = 16
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.002"', settings=SETTINGS) as running:
        with running.client() as client:
            running.load(client)
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        wait_until(lambda: connected.requests().requests == (), "nothing is left of the test before")
        yield connected


def ask(prompt: str = "abc", max_tokens: int = 3000, credits_: int = 0, **fields) -> Generate:
    sampling = SamplingParams(max_tokens=max_tokens, **fields)
    return Generate(model="bytes", prompt=prompt, sampling=sampling, credits=credits_)


def state_of(client: Client, request_id: str) -> str:
    items = [item for item in client.requests().requests if item.request_id == request_id]
    return items[0].state if items else "gone"


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenChunk))


def begin(raw: RawClient, request: Generate) -> str:
    raw.send(request)
    accepted = raw.receive()
    assert isinstance(accepted, Accepted)
    return accepted.request_id


def test_no_more_chunks_come_than_were_granted_and_none_is_lost(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(max_tokens=100, credits_=2))
        first = [raw.receive(), raw.receive()]
        wait_until(lambda: client.requests().requests[0].num_emitted_tokens == 100, "all tokens are drawn, read or not")
        assert state_of(client, request_id) == "waiting for its reader"
        assert not raw.has_more()

        raw.send(Grant(request_id=request_id, chunks=5))
        rest = raw.receive_to_the_end()

    assert [chunk.text for chunk in first] == ["a", "b"]
    joined, last = rest
    assert (joined.sequence, joined.text, joined.reason) == (2, ("abc" * 34)[2:100], FinishReason.LENGTH)
    assert len(joined.token_ids) == 98
    assert isinstance(last, Finished)
    assert (last.sequence, last.usage.completion_tokens) == (3, 100)


def test_choices_that_wait_are_joined_each_by_itself(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(max_tokens=50, credits_=1, num_choices=2))
        chunks = [raw.receive()]
        wait_until(lambda: client.requests().requests[0].num_emitted_tokens == 100, "both choices are drawn")
        raw.send(Grant(request_id=request_id, chunks=9))
        *rest, last = raw.receive_to_the_end()
        chunks += rest

    assert isinstance(last, Finished)
    assert [chunk.sequence for chunk in chunks] == list(range(last.sequence)) == [0, 1, 2]
    texts = ["".join(chunk.text for chunk in chunks if chunk.choice == choice) for choice in range(2)]
    assert texts == [("abc" * 17)[:50], ("bca" * 17)[:50]]


def test_reader_that_stops_loses_its_answer_and_nobody_else_notices(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        begin(raw, ask(credits_=1))
        beside = list(client.generate(ask(max_tokens=400)))

        *_, error = raw.receive_to_the_end()

    assert isinstance(error, ErrorReply)
    assert (error.code, error.retryable) == ("slow_reader", False)
    assert "max_stream_buffer" in error.hint
    assert text_of(beside) == ("abc" * 134)[:400]
    wait_until(lambda: client.status().num_running == 0, "its sequence is taken off the stages")


def test_reader_has_the_time_of_its_request_to_take_the_end(daemon: RunningDaemon):
    with RawClient(daemon.endpoint) as raw:
        request = Generate(
            model="bytes", prompt="abc", sampling=SamplingParams(max_tokens=9), credits=1, timeout_seconds=0.5
        )
        begin(raw, request)

        *_, error = raw.receive_to_the_end()

    assert error.code == "slow_reader"


def test_words_about_anothers_request_change_nothing(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw, RawClient(daemon.endpoint) as stranger:
        request_id = begin(raw, ask(max_tokens=20, credits_=1))
        raw.receive()
        wait_until(lambda: client.requests().requests[0].num_emitted_tokens == 20, "the rest waits")
        for word in (Grant(request_id=request_id, chunks=9), Grant(request_id="none", chunks=9)):
            stranger.send(word)
        stranger.send(Cancel(request_id="none"))
        assert stranger.receive().code == "unknown_request"  # What it said before was heard.
        raw.send(Grant(request_id=request_id, chunks=-5))
        assert not raw.has_more()
        raw.send(Grant(request_id=request_id, chunks=1))

        assert isinstance(raw.receive_to_the_end()[-1], Finished)


@pytest.mark.parametrize("length", [10, 1500])
def test_reader_that_pauses_loses_nothing(client: Client, length: int):
    events = client.generate(ask(max_tokens=length, credits_=3))
    taken = [next(events), next(events)]
    wait_until(lambda: client.requests().requests[0].num_emitted_tokens > 8, "the answer goes on without its reader")
    taken += events

    assert text_of(taken) == ("abc" * 500)[:length]
    assert [event.sequence for event in taken if isinstance(event, TokenChunk)] == list(range(len(taken) - 2))


def test_asyncio_readers_keep_their_answers_going(daemon: RunningDaemon):
    async def one(connected: AsyncClient) -> str:
        return text_of([event async for event in connected.generate(ask(max_tokens=300, credits_=2))])

    async def both() -> list[str]:
        async with AsyncClient(daemon.endpoint) as connected:
            return list(await asyncio.gather(one(connected), one(connected)))

    assert asyncio.run(both()) == ["abc" * 100] * 2


@contextlib.contextmanager
def busy(daemon: RunningDaemon) -> Generator[None]:
    """Take every place among the running."""
    with daemon.client() as other:
        streams = [other.generate(ask()) for _ in range(2)]
        for stream in streams:
            next(stream)
            next(stream)
        yield
        for stream in streams:
            stream.close()


LONG = "abc" * 900  # 170 steps of 16 tokens: it is in prefill for a while.


def test_cancel_in_the_queue(daemon: RunningDaemon, client: Client):
    with busy(daemon), RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask())
        assert state_of(client, request_id) == "queued"
        client.cancel(request_id)

        chunk, last = raw.receive_to_the_end()

    assert (chunk.reason, last.reason, last.usage.completion_tokens) == (FinishReason.CANCELLED,) * 2 + (0,)


def test_cancel_in_prefill(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(LONG, max_tokens=5))
        wait_until(lambda: state_of(client, request_id) == "prefill", "the prompt is being computed")
        client.cancel(request_id)

        last = raw.receive_to_the_end()[-1]

    assert (last.reason, last.usage.completion_tokens) == (FinishReason.CANCELLED, 0)
    assert client.status().num_running == 0


def test_cancel_in_decode(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask())
        raw.receive()
        client.cancel(request_id)

        last = raw.receive_to_the_end()[-1]

    assert last.reason is FinishReason.CANCELLED
    assert 0 < last.usage.completion_tokens < 3000


def test_cancel_while_the_reader_is_waited_for(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(max_tokens=20, credits_=1))
        wait_until(lambda: state_of(client, request_id) == "waiting for its reader", "the rest waits")
        wait_until(lambda: client.status().num_running == 0, "all tokens are drawn")
        client.cancel(request_id)

        last = raw.receive_to_the_end()[-1]

    assert (last.reason, last.sequence) == (FinishReason.CANCELLED, 1)


def test_cancel_after_the_end(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(max_tokens=2))
        raw.receive_to_the_end()

    with pytest.raises(UnknownRequest):
        client.cancel(request_id)


def test_cancel_at_any_moment_ends_the_answer_once_and_leaves_nothing(daemon: RunningDaemon, client: Client):
    seed = random.SystemRandom().getrandbits(32)
    draw = random.Random(seed)
    for _ in range(40):
        with RawClient(daemon.endpoint) as raw:
            request_id = begin(raw, ask("abc" * draw.randrange(1, 20), max_tokens=20, credits_=draw.randrange(3)))
            for _ in range(draw.randrange(3)):
                client.status()
            raw.send(Cancel(request_id=request_id), correlation=2)
            finals = []
            while len(finals) < 2:
                message = raw.receive()
                if isinstance(message, (Done, Finished, ErrorReply)):
                    finals.append(message)

        kinds = sorted(type(message).__name__ for message in finals)
        assert kinds in (["Done", "Finished"], ["ErrorReply", "Finished"]), f"seed {seed}"
    wait_until(lambda: client.status().num_running + client.status().num_queued == 0, f"all are over; seed {seed}")


def test_client_that_leaves_while_its_request_is_queued_is_noticed(daemon: RunningDaemon, client: Client):
    with busy(daemon):
        with RawClient(daemon.endpoint) as raw:
            request_id = begin(raw, ask())
        wait_until(lambda: state_of(client, request_id) == "gone", "the request is gone")


def test_client_that_leaves_in_prefill_is_noticed_before_the_first_token(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(LONG, max_tokens=1000))
        wait_until(lambda: state_of(client, request_id) == "prefill", "the prompt is being computed")

    wait_until(lambda: state_of(client, request_id) == "gone", "the request is gone")
    assert client.status().num_running == 0


def test_client_that_leaves_at_the_last_token_leaves_nothing(daemon: RunningDaemon, client: Client):
    for _ in range(10):
        with RawClient(daemon.endpoint) as raw:
            begin(raw, ask(max_tokens=3))
            raw.receive()
            raw.receive()

    wait_until(lambda: client.requests().requests == (), "nothing is listed any more")
    assert text_of(list(client.generate(ask(max_tokens=6)))) == "abcabc"


def test_client_that_leaves_while_its_reader_is_waited_for_is_noticed(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        request_id = begin(raw, ask(max_tokens=20, credits_=1))
        wait_until(lambda: state_of(client, request_id) == "waiting for its reader", "the rest waits")

    wait_until(lambda: state_of(client, request_id) == "gone", "the request is gone")
