import pytest

from teengined.core.errors import Draining, QueueFull, RequestError, SlowReader, TeengineError, UnknownModel, WorkerLost
from teengined.core.request import FinishReason, Usage
from teengined.protocol.messages import Embed, Embedded, Finished, Generate, GetStatus, Score, Scored
from teengined.service.metrics.call_meter import CallMeter, SocketMeter
from teengined.service.server import error_reply

USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    streamed_bytes=0,
    bound_seconds_per_token=0.0,
)


def finished(reason: FinishReason) -> Finished:
    return Finished(request_id="r", sequence=0, reason=reason, usage=USAGE)


def test_calls_are_counted_by_what_ended_them():
    meter = SocketMeter({"m": (known := CallMeter())}.get)

    meter.note_end(Generate(model="m"), finished(FinishReason.LENGTH), 2.0)
    meter.note_end(Generate(model="m"), finished(FinishReason.CANCELLED), 1.0)
    meter.note_end(Score(model="m"), Scored(logprobs=(), total=0.0, is_greedy=True, usage=USAGE), 3.0)
    meter.note_end(Embed(model="m"), Embedded(vectors=(), dimensions=0, usage=USAGE), 4.0)

    outcomes = {("generate", "length"): 1, ("generate", "cancelled"): 1, ("score", "done"): 1, ("embed", "done"): 1}
    assert known.ended == outcomes
    assert known.seconds.total == 10.0
    assert known.refused == {}


@pytest.mark.parametrize("error", [QueueFull("full"), RequestError("wrong"), Draining("late"), UnknownModel("who")])
def test_what_could_not_be_or_found_no_room_is_refused(error: TeengineError):
    meter = CallMeter()
    meter.note("generate", error_reply(error), 1.0)

    assert meter.refused == meter.ended == {("generate", error.code): 1}
    assert sum(meter.seconds.distribution.counts) == 0


@pytest.mark.parametrize("error", [WorkerLost("gone"), SlowReader("slow")])
def test_what_failed_on_its_way_was_not_refused(error: TeengineError):
    meter = CallMeter()
    meter.note("generate", error_reply(error), 1.0)

    assert meter.ended == {("generate", error.code): 1}
    assert meter.refused == {}


def test_name_of_a_model_that_is_not_loaded_is_not_kept():
    meter = SocketMeter()
    for number in range(1000):
        meter.note_end(Generate(model=f"made-up-{number}"), error_reply(UnknownModel("who")), 0.0)

    assert meter.unknown.ended == {("generate", "unknown_model"): 1000}


def test_calls_that_ask_nothing_of_a_model_are_not_requests():
    meter = SocketMeter()
    meter.note_end(GetStatus(), error_reply(RequestError("no")), 0.0)

    assert meter.unknown.ended == {}
