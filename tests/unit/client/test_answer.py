import pytest

from teengined.client.answer import AnswerOrder
from teengined.core.errors import ProtocolError
from teengined.core.request import FinishReason, Usage
from teengined.protocol.messages import Accepted, Finished, TokenChunk

ACCEPTED = Accepted(request_id="r", num_prompt_tokens=1, context_tokens=9)
USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    streamed_bytes=0,
    bound_seconds_per_token=0.0,
)


def chunk(sequence: int) -> TokenChunk:
    return TokenChunk(request_id="r", sequence=sequence, token_ids=(1,), text="a")


def test_events_in_order_are_all_new():
    order = AnswerOrder()
    finished = Finished(request_id="r", sequence=1, reason=FinishReason.STOP, usage=USAGE)

    assert [order.admit(event) for event in (ACCEPTED, chunk(0), finished)] == [True, True, True]
    assert order.finished
    assert order.request_id == "r"


def test_repeated_events_are_not_told_twice():
    order = AnswerOrder()

    assert [order.admit(e) for e in (ACCEPTED, chunk(0), chunk(1), ACCEPTED, chunk(0), chunk(1), chunk(2))] == [
        *[True] * 3,
        *[False] * 3,
        True,
    ]


def test_missing_chunk_is_an_error():
    order = AnswerOrder()
    order.admit(chunk(0))

    with pytest.raises(ProtocolError, match="chunk 1 of request r is missing"):
        order.admit(chunk(2))
