import random
import sys

import pytest

from teengined.core.request import FinishReason, TokenLogprobs
from teengined.protocol.messages import TokenChunk, ToolCallDelta
from teengined.service.chunk_stream import ChunkStream, Piece
from teengined.service.segments import SegmentDelta


def stream(credits_: int | None, max_buffer_bytes: int = 1000) -> tuple[ChunkStream, list[TokenChunk]]:
    sent: list[TokenChunk] = []
    made = ChunkStream(request_id="r", send=sent.append, credits=credits_, max_buffer_bytes=max_buffer_bytes)
    return made, sent


def piece(token: int, choice: int = 0, reasoning: str = "", **fields) -> Piece:
    said = SegmentDelta(text=chr(97 + token), reasoning=reasoning)
    return Piece(choice=choice, token_ids=(token,), said=said, **fields)


def put(made: ChunkStream, *pieces: Piece) -> None:
    for item in pieces:
        made.add(item)
        made.flush()


def test_without_limit_every_piece_leaves_at_once():
    made, sent = stream(None)

    put(made, piece(0), piece(1))

    assert [(chunk.sequence, chunk.token_ids, chunk.text) for chunk in sent] == [(0, (0,), "a"), (1, (1,), "b")]


def test_what_belongs_together_leaves_together():
    made, sent = stream(None)
    made.add(piece(0))
    made.add(Piece(choice=0, said=SegmentDelta(text="!"), reason=FinishReason.STOP))

    made.flush()

    assert [(chunk.text, chunk.reason) for chunk in sent] == [("a!", FinishReason.STOP)]


def test_what_may_not_leave_is_joined_and_loses_nothing():
    made, sent = stream(1)
    logprobs = tuple(TokenLogprobs(token_id=token, logprob=-1.0) for token in range(4))

    put(made, *(piece(token, logprobs=(logprobs[token],), reasoning=str(token)) for token in range(4)))
    call = ToolCallDelta(index=0, arguments="{}")
    put(made, Piece(choice=0, said=SegmentDelta(tool_calls=(call,)), reason=FinishReason.LENGTH))
    assert len(sent) == 1
    assert made.waits

    made.grant(1)

    assert not made.waits
    assert (sent[1].sequence, sent[1].token_ids, sent[1].text) == (1, (1, 2, 3), "bcd")
    assert sent[1].logprobs == logprobs[1:]
    assert (sent[1].reasoning, sent[1].tool_calls, sent[1].reason) == ("123", (call,), FinishReason.LENGTH)


def test_choices_wait_apart_and_the_oldest_goes_first():
    made, sent = stream(1)
    put(made, piece(0, 0), piece(1, 1), piece(2, 0), piece(3, 1))

    made.grant(5)

    assert [(chunk.choice, chunk.text) for chunk in sent] == [(0, "a"), (1, "bd"), (0, "c")]


@pytest.mark.parametrize("num_chunks", [0, -3])
def test_a_grant_of_nothing_lets_nothing_go(num_chunks: int):
    made, sent = stream(1)
    put(made, piece(0), piece(1))

    made.grant(num_chunks)

    assert len(sent) == 1
    assert made.credits == 0


def test_more_than_may_wait_is_seen():
    made, _ = stream(1, max_buffer_bytes=90)
    put(made, piece(0), *(piece(1) for _ in range(10)))
    assert not made.is_over

    put(made, piece(1))

    assert made.is_over
    made.drop()
    assert not made.waits


def test_alternatives_count_against_the_bound():
    made, _ = stream(0, max_buffer_bytes=60)
    top = tuple((token, -1.0) for token in range(20))

    put(made, piece(0, logprobs=(TokenLogprobs(token_id=0, logprob=-1.0, top=top),)))

    assert made.is_over


def test_however_credits_come_the_numbers_have_no_gap_and_the_texts_are_whole():
    seed = random.SystemRandom().getrandbits(32)
    draw = random.Random(seed)
    made, sent = stream(draw.randrange(3), max_buffer_bytes=1 << 20)
    texts = {0: "", 1: "", 2: ""}

    for _ in range(500):
        if draw.random() < 0.7:
            item = piece(draw.randrange(26), draw.randrange(3))
            texts[item.choice] += item.said.text
            put(made, item)
        else:
            made.grant(draw.randrange(3))
    made.grant(3)

    assert [chunk.sequence for chunk in sent] == list(range(made.num_sent)), f"seed {seed}"
    told = {choice: "".join(chunk.text for chunk in sent if chunk.choice == choice) for choice in texts}
    assert told == texts, f"seed {seed}"


def test_what_waits_with_alternatives_is_counted_as_python_holds_it():
    told = tuple(
        TokenLogprobs(
            token_id=1000 + token,
            logprob=-1.0 / (token + 3),
            top=tuple((2000 + i, -1.0 / (i + 3)) for i in range(20)),
        )
        for token in range(100)
    )
    held = sys.getsizeof(told)
    for item in told:
        held += sum(map(sys.getsizeof, (item, item.token_id, item.logprob, item.top)))
        held += sum(sys.getsizeof(part) for pair in item.top for part in (pair, *pair))

    counted = Piece(choice=0, said=SegmentDelta(), token_ids=(1,) * 100, logprobs=told).size_bytes

    assert 0.8 * held < counted < 1.5 * held
