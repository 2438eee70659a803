import asyncio
import math
import struct
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from teengined.core.errors import NumericalFault, QueueFull, QuotaExceeded, RequestError
from teengined.core.request import FinishReason, Usage
from teengined.protocol.messages import Embed, Embedded, Generate, Score
from teengined.service.admission import ModelLimits
from teengined.service.answer import Outcome
from teengined.service.handlers import scoring
from teengined.service.handlers.generation import Generations
from teengined.service.handlers.scoring import Scorings, normalized
from teengined.service.requests import RequestTable
from teengined.service.server import Call

CALL = Call(client=b"c", owner="uid:7", correlation=1, stream=lambda _: None)
USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=0,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    streamed_bytes=0,
    bound_seconds_per_token=0.0,
)


class OneModel:
    """Answers with the prompt as a vector, once it has refused as often as it is told to."""

    request_limits = ModelLimits(
        model="m",
        vocab_size=10,
        context_tokens=100,
        max_choices=4,
        max_inputs=9,
        max_seconds=60.0,
        max_reply_bytes=1000,
    )

    def __init__(self, refusals: list[Exception]) -> None:
        self.refusals = refusals
        self.prompts = self

    def submit(self, submission) -> Any:
        if self.refusals:
            raise self.refusals.pop()
        vector = struct.pack("<2f", *submission.prompt)
        ended = asyncio.get_running_loop().create_future()
        ended.set_result(Outcome(reason=FinishReason.STOP, usage=USAGE, vector=vector))
        return SimpleNamespace(request_id=submission.request_id, ended=ended, stream=None)

    def check_room(self, _owner: str, _num_choices: int) -> None: ...

    def release(self, _answer) -> None: ...

    async def read(self, message: Generate) -> Any:
        return SimpleNamespace(token_ids=message.token_ids)

    async def read_pair(self, message: Score) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return message.context_ids, message.continuation_ids

    @property
    def context(self) -> Any:
        return SimpleNamespace(deployments=SimpleNamespace(get=lambda _: self, check_open=lambda: None))


def embed(model: OneModel, **fields) -> Embedded:
    message = Embed(model="m", token_ids=((3, 4), (0, 2)), **fields)

    async def run() -> Embedded:
        return await Scorings(RequestTable()).embed(model.context, CALL, message)

    return asyncio.run(run())


def test_inputs_of_a_call_that_was_taken_wait_for_room():
    refusals = [QueueFull("no room"), QuotaExceeded("no room for you", retry_after_seconds=0.001), QueueFull("no room")]

    told = embed(OneModel(list(refusals)), normalize=False)

    assert told.vectors == (struct.pack("<2f", 3, 4), struct.pack("<2f", 0, 2))


def test_inputs_wait_no_longer_than_the_time_of_their_call():
    with pytest.raises(QueueFull):
        embed(OneModel([QueueFull("no room")] * 1000), timeout_seconds=0.05)


def test_vectors_are_normalised_beside_the_loop(monkeypatch: pytest.MonkeyPatch):
    threads: list[threading.Thread] = []

    def watched(vector: bytes) -> bytes:
        threads.append(threading.current_thread())
        return normalized(vector)

    monkeypatch.setattr(scoring, "normalized", watched)

    assert embed(OneModel([])).vectors == (normalized(struct.pack("<2f", 3, 4)), struct.pack("<2f", 0, 1))
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_more_log_probabilities_than_a_reply_holds_are_refused_before_anything_runs():
    model, requests = OneModel([AssertionError("it was submitted")]), RequestTable()
    generate = Generate(
        model="m", token_ids=(1,) * 30, sampling=scoring.SamplingParams(max_tokens=1, prompt_logprobs=20)
    )
    score = Score(model="m", context_ids=(1,), continuation_ids=(1,) * 30, top=20)

    with pytest.raises(RequestError, match="of 30 given tokens, each with 20"):
        asyncio.run(Generations(requests, 0).generate(model.context, CALL, generate))
    with pytest.raises(RequestError, match="of 30 given tokens, each with 20"):
        asyncio.run(Scorings(requests).score(model.context, CALL, score))


def test_vector_keeps_its_direction_and_gets_length_one():
    assert struct.unpack("<2f", normalized(struct.pack("<2f", 3.0, -4.0))) == pytest.approx((0.6, -0.8))


def test_vector_without_length_stays():
    assert normalized(bytes(8)) == bytes(8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vector_of_what_is_no_number_is_a_fault(value: float):
    with pytest.raises(NumericalFault):
        normalized(struct.pack("<2f", 1.0, value))
