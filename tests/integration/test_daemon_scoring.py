"""A real daemon with the fake worker: how probable a text is, and where it lies.

For the fake worker the most probable token is the one after the last, with a log-probability of -0.25; others have -4.
"""

import asyncio
import math
import struct
from collections.abc import Iterator

import pytest

from teengined.client import AsyncClient, Client
from teengined.core.errors import ContextTooLong, RequestError, UnknownModel
from teengined.protocol.messages import Embed, Score
from tests.fakes.byte_package import BOS
from tests.fakes.running_daemon import RunningDaemon

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(settings="[streaming]\nmax_step_tokens = 32") as running:
        with running.client() as client:
            running.load(client, assignment={"cpu:1": 1, "cpu:0": 3})
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def score(context: str, continuation: str, **fields) -> Score:
    return Score(model="bytes", context=context, continuation=continuation, **fields)


def embed(*texts: str, **fields) -> Embed:
    return Embed(model="bytes", texts=texts, **fields)


def floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack("<4f", vector)


@pytest.mark.parametrize(
    ("context", "continuation", "logprobs"),
    [("ab", "cd", [-0.25, -0.25]), ("ab", "cx", [-0.25, -4.0]), ("ab", "b", [-4.0])],
)
def test_continuation_is_scored_token_by_token(client: Client, context: str, continuation: str, logprobs: list[float]):
    scored = client.score(score(context, continuation))

    assert [item.logprob for item in scored.logprobs] == logprobs
    assert bytes(item.token_id for item in scored.logprobs).decode() == continuation
    assert scored.total == pytest.approx(sum(logprobs))
    assert scored.is_greedy == (-4.0 not in logprobs)
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (len(context + continuation), 0)
    assert all(item.top == () for item in scored.logprobs)


def test_alternatives_are_told_as_many_as_were_asked_for(client: Client):
    scored = client.score(score("ab", "x", top=3))

    assert scored.logprobs[0].top == ((ord("c"), -0.25), (ord("d"), -1.25), (ord("e"), -2.25))


def test_empty_context_is_the_token_that_begins_a_text(client: Client):
    scored = client.score(score("", "ab"))

    assert scored.usage.prompt_tokens == 3
    assert [item.token_id for item in scored.logprobs] == list(b"ab")


def test_token_ids_are_scored_as_they_are(client: Client):
    request = Score(model="bytes", context_ids=(BOS, 97), continuation_ids=(98, 99, 120))

    assert [item.logprob for item in client.score(request).logprobs] == [-0.25, -0.25, -4.0]


def test_context_that_was_there_already_is_not_computed_again(client: Client):
    context = "a context of more than a few blocks, " * 4

    usages = [client.score(score(context, end)).usage for end in ("one", "two")]

    assert usages[0].cached_tokens == 0
    assert usages[1].cached_tokens > 100


def test_long_texts_are_scored_over_many_steps(client: Client):
    text = "".join(chr(97 + index % 26) for index in range(500))

    scored = client.score(score(text[:3], text[3:]))

    assert bytes(item.token_id for item in scored.logprobs).decode() == text[3:]
    assert [item.logprob for item in scored.logprobs].count(-4.0) == 19  # From z to a.


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        (Score(model="nobody", context="a", continuation="b"), UnknownModel, "not loaded"),
        (score("a", ""), RequestError, "no continuation"),
        (Score(model="bytes", context_ids=(1,), continuation_ids=(300,)), RequestError, "between 0 and 257"),
        (score("a" * 5000, "b"), ContextTooLong, "5001 prompt tokens"),
        (Embed(model="nobody", texts=("a",)), UnknownModel, "not loaded"),
        (embed("a", ""), RequestError, "no tokens"),
        (Embed(model="bytes", token_ids=((1,), (-1,))), RequestError, "between 0 and 257"),
        (embed("a", "b" * 5000), ContextTooLong, "5000 prompt tokens"),
        (embed(*["a"] * 3000), RequestError, "the limit is 2048"),
    ],
)
def test_what_cannot_be_scored_is_refused(client: Client, request_, error, told):
    with pytest.raises(error, match=told):
        client.score(request_) if isinstance(request_, Score) else client.embed(request_)


def test_each_text_has_its_vector_in_the_order_of_the_texts(client: Client):
    texts = [chr(97 + index % 26) * (1 + index) for index in range(100)]

    embedded = client.embed(embed(*texts, normalize=False))

    assert embedded.dimensions == 4
    expected = [(float(ord(text[0])), float(ord(text[-1])), float(len(text)), 1.0) for text in texts]
    assert [floats(vector) for vector in embedded.vectors] == expected
    assert embedded.usage.prompt_tokens == sum(map(len, texts))


def test_vectors_have_length_one_unless_asked_otherwise(client: Client):
    embedded = client.embed(embed("abc", pooling="last"))

    vector = floats(embedded.vectors[0])
    assert math.hypot(*vector) == pytest.approx(1.0)
    assert vector[3] == 0.0


def test_token_ids_have_vectors_too(client: Client):
    request = Embed(model="bytes", token_ids=((5, 6), (7,)), normalize=False)

    assert [floats(vector)[2] for vector in client.embed(request).vectors] == [2.0, 1.0]


def test_nothing_runs_on_after_a_refusal_in_the_middle(client: Client):
    with pytest.raises(RequestError):
        client.embed(embed(*["abc" * 100] * 60, ""))

    assert client.requests().requests == ()


def test_asyncio_client_scores_and_embeds(daemon: RunningDaemon):
    async def story() -> tuple[float, int, int]:
        async with AsyncClient(daemon.endpoint) as connected:
            scored, embedded = await asyncio.gather(connected.score(score("a", "b")), connected.embed(embed("a")))
            return scored.total, embedded.dimensions, len((await connected.requests()).requests)

    assert asyncio.run(story()) == (-0.25, 4, 0)
