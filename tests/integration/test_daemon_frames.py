"""Bytes that are no messages, and clients that do not read: whoever sends them gets an error, nobody else notices."""

from collections.abc import Iterator

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from teengined.core.errors import MessageTooLarge
from teengined.core.sampling import SamplingParams
from teengined.protocol.codec import HEADER, CodecLimits, Envelope, decode, encode
from teengined.protocol.messages import CLIENT_MESSAGES, Done, ErrorReply, Generate, Status
from tests.fakes.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.system
MAX_MESSAGE = 64 * 1024


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    limits = '[protocol]\nmax_message = "64KiB"\nsend_queue = 4\nmax_pending = 8\nmax_calls = 3\n'
    limits += '[batching]\nmax_stream_buffer = "64KiB"'
    with RunningDaemon(settings=limits, worker_arguments=', "--step-seconds", "0.002"') as running:
        with running.client() as client:
            running.load(client)
        yield running


@pytest.fixture(scope="module")
def raw(daemon: RunningDaemon) -> Iterator[zmq.Socket]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.connect(daemon.endpoint)
    yield socket
    socket.close(linger=0)
    context.term()


def body(correlation, tag, fields) -> bytes:
    return msgpack.packb([correlation, tag, fields])


def receive(raw: zmq.Socket) -> Envelope:
    """Return the next message that is no probe."""
    while True:
        envelope = decode(raw.recv_multipart(), CLIENT_MESSAGES, CodecLimits(max_message_bytes=1 << 26))
        if envelope.correlation or not isinstance(envelope.message, Done):
            return envelope


def reply_to(raw: zmq.Socket, frames: list[bytes]) -> Envelope:
    raw.send_multipart(frames)
    return receive(raw)


@pytest.mark.parametrize(
    ("frames", "code", "correlation"),
    [
        ([b""], "malformed", 0),
        ([b"", b""], "malformed", 0),
        ([HEADER], "malformed", 0),
        ([HEADER, b"", b""], "malformed", 0),
        ([b"HTTP/1.1", b"GET /"], "malformed", 0),
        ([HEADER, b"\xc1"], "malformed", 0),
        ([HEADER, msgpack.packb({"a": 1})], "malformed", 0),
        ([HEADER, b"\x91" * 5000], "malformed", 0),
        ([HEADER, body(7, "no_such_call", {})], "malformed", 7),
        ([HEADER, body(7, "generate", {"model": 5})], "malformed", 7),
        ([HEADER, body(7, "generate", {"model": "bytes", "promt": "a"})], "malformed", 7),
        ([HEADER, body(7, "done", {})], "malformed", 7),
        ([HEADER, body(-1, "get_status", {})], "malformed", 0),
        ([b"TE\x63", body(7, "get_status", {})], "unknown_version", 7),
        ([HEADER, body(7, "list_models", {"prefix": "a" * 2 * MAX_MESSAGE})], "message_too_large", 7),
    ],
)
def test_frames_that_are_no_request_get_an_error(raw: zmq.Socket, frames, code, correlation):
    envelope = reply_to(raw, frames)

    assert isinstance(envelope.message, ErrorReply)
    assert envelope.message.code == code
    assert envelope.correlation == correlation


@settings(max_examples=150)
@given(frames=st.lists(st.binary(max_size=80), min_size=1, max_size=4) | st.binary().map(lambda b: [HEADER, b]))
def test_any_bytes_are_answered_and_the_daemon_goes_on(raw: zmq.Socket, frames):
    assert isinstance(reply_to(raw, frames).message, ErrorReply)
    assert isinstance(reply_to(raw, [HEADER, body(1, "get_status", {})]).message, Status)


@settings(max_examples=100)
@given(
    tag=st.sampled_from(sorted(CLIENT_MESSAGES)),
    fields=st.dictionaries(
        st.sampled_from(["model", "prompt", "plan", "sampling", "request_id"]),
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats() | st.lists(st.integers(0, 9)),
        min_size=1,
    ),
)
def test_any_fields_are_answered_and_the_daemon_goes_on(raw: zmq.Socket, tag, fields):
    assert reply_to(raw, [HEADER, body(3, tag, fields)]).correlation == 3
    assert isinstance(reply_to(raw, [HEADER, body(1, "get_status", {})]).message, Status)


def test_same_call_number_twice_at_once_is_refused(raw: zmq.Socket, daemon: RunningDaemon):
    request = encode(
        Envelope(correlation=9, message=Generate(model="bytes", prompt="ab", sampling=SamplingParams(max_tokens=2))),
        CLIENT_MESSAGES,
        CodecLimits(),
    )
    raw.send_multipart(request)
    raw.send_multipart(request)

    kinds = []
    while kinds.count("Finished") + kinds.count("ErrorReply") < 2:
        kinds.append(type(receive(raw).message).__name__)

    assert sorted(kinds) == ["Accepted", "ErrorReply", "Finished", "TokenChunk", "TokenChunk"]


def test_too_many_calls_of_one_client_are_refused(daemon: RunningDaemon, raw: zmq.Socket):
    # Short answers: this client reads on a busy machine, and must not be cut off for reading too slowly.
    request = Generate(model="bytes", prompt="ab", sampling=SamplingParams(max_tokens=60))
    for correlation in range(20, 24):
        raw.send_multipart(encode(Envelope(correlation=correlation, message=request), CLIENT_MESSAGES, CodecLimits()))

    refusals: dict[int, str] = {}
    open_calls = {20, 21, 22, 23}
    while open_calls:
        envelope = receive(raw)
        if isinstance(envelope.message, ErrorReply):
            refusals[envelope.correlation] = envelope.message.code
        if type(envelope.message).__name__ in ("Finished", "ErrorReply"):
            open_calls.discard(envelope.correlation)

    assert refusals == {23: "queue_full"}


def test_client_refuses_to_send_what_the_daemon_would_not_take(daemon: RunningDaemon):
    with daemon.client() as client, pytest.raises(MessageTooLarge, match="65536"):
        list(client.generate(Generate(model="bytes", prompt="a" * 2 * MAX_MESSAGE)))


def test_client_that_does_not_read_is_cut_off_and_others_are_served(daemon: RunningDaemon):
    context = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.setsockopt(zmq.RCVBUF, 1024)
    deaf.connect(daemon.endpoint)
    request = Generate(model="bytes", prompt="é", sampling=SamplingParams(max_tokens=4000))
    deaf.send_multipart(encode(Envelope(correlation=1, message=request), CLIENT_MESSAGES, CodecLimits()))

    with daemon.client() as client:
        wait_until(lambda: "reads too slowly" in daemon.log(), "the deaf client is cut off")
        wait_until(lambda: client.status().num_running == 0, "its answer is cancelled")
        events = list(client.generate(Generate(model="bytes", prompt="a", sampling=SamplingParams(max_tokens=3))))

    assert len(events) == 5
    assert last_message(deaf).code == "slow_reader"
    deaf.close(linger=0)
    context.term()


def last_message(socket: zmq.Socket):
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    while True:
        message = decode(socket.recv_multipart(), CLIENT_MESSAGES, CodecLimits()).message
        if isinstance(message, ErrorReply):
            return message


def test_others_notice_nothing_of_all_this(daemon: RunningDaemon, raw: zmq.Socket):
    with daemon.client() as client:
        events = client.generate(Generate(model="bytes", prompt="abc", sampling=SamplingParams(max_tokens=50)))
        first = next(events)
        for _ in range(5):
            reply_to(raw, [b"junk", b"junk"])

        assert first.request_id
        assert len(list(events)) == 51
