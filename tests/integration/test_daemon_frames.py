"""Bytes that are no messages, and clients that do not read: whoever sends them gets an error, nobody else notices."""

from collections.abc import Iterator

import msgpack
import pytest
import zmq
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from teengined.core.errors import MessageTooLarge
from teengined.core.sampling import SamplingParams
from teengined.protocol.codec import HEADER, CodecLimits, Envelope, decode, encode
from teengined.protocol.messages import (
    CLIENT_MESSAGES,
    Accepted,
    Cancel,
    Done,
    Embed,
    ErrorReply,
    Finished,
    Generate,
    Score,
    Status,
)
from tests.fakes.running_daemon import RunningDaemon, wait_until
from tests.fakes.wire_fields import ANYTHING, wire_fields

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


def final_reply_to(raw: zmq.Socket, frames: list[bytes]) -> object:
    """Return how call 3 ends; an answer that begins is cancelled, so that none is left for the next call."""
    envelope = reply_to(raw, frames)
    if isinstance(envelope.message, Accepted):
        cancel = Cancel(request_id=envelope.message.request_id)
        raw.send_multipart(encode(Envelope(correlation=5, message=cancel), CLIENT_MESSAGES, CodecLimits()))
        ends: dict[int, object] = {}
        while len(ends) < 2:
            envelope = receive(raw)
            if isinstance(envelope.message, Done | Finished | ErrorReply):
                ends[envelope.correlation] = envelope.message
        return ends[3]
    assert envelope.correlation == 3
    return envelope.message


# Not those that end, change or measure something when they happen to be right.
# A grant has no reply of its own.
LEFT_OUT = {"drain", "grant", "load_model", "measure_devices", "remove_model", "unload_model"}
ASKING = sorted(CLIENT_MESSAGES.keys() - LEFT_OUT)


@settings(max_examples=150)
@given(asked=st.sampled_from(ASKING).flatmap(lambda tag: st.tuples(st.just(tag), wire_fields(CLIENT_MESSAGES[tag]))))
def test_any_message_is_answered_and_the_daemon_goes_on(raw: zmq.Socket, asked):
    tag, fields = asked
    assume(tag != "cancel" or fields.get("request_id"))  # Without an id it is a word within a call, never answered.
    reply = final_reply_to(raw, [HEADER, body(3, tag, fields)])

    assert not isinstance(reply, ErrorReply) or reply.code != "internal", reply
    assert isinstance(reply_to(raw, [HEADER, body(1, "get_status", {})]).message, Status)


@settings(max_examples=200)
@given(
    asked=st.one_of(
        wire_fields(Generate, model="bytes").map(lambda fields: ("generate", fields)),
        wire_fields(Generate, model="bytes", prompt="ab", token_ids=[], messages=[]).map(
            lambda fields: ("generate", fields)
        ),
        wire_fields(Score, model="bytes").map(lambda fields: ("score", fields)),
        wire_fields(Embed, model="bytes").map(lambda fields: ("embed", fields)),
    )
)
def test_any_question_to_a_model_is_answered_and_the_daemon_goes_on(raw: zmq.Socket, asked):
    tag, fields = asked
    reply = final_reply_to(raw, [HEADER, body(3, tag, fields)])

    assert not isinstance(reply, ErrorReply) or reply.code != "internal", reply
    assert isinstance(reply_to(raw, [HEADER, body(1, "get_status", {})]).message, Status)


@settings(max_examples=100)
@given(tag=st.sampled_from(sorted(CLIENT_MESSAGES)), fields=st.dictionaries(st.text(min_size=1), ANYTHING, min_size=1))
def test_fields_of_any_name_are_answered(raw: zmq.Socket, tag, fields):
    assert isinstance(reply_to(raw, [HEADER, body(3, tag, fields)]).message, ErrorReply)


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
