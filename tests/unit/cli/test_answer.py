import itertools

import pytest

from teengined.cli.answer import Answer, Gathered, speed_of, stream_answer, timing_lines
from teengined.client import Client
from teengined.core.request import FinishReason, ToolCall, Usage
from teengined.protocol import messages as wire

USAGE = Usage(
    prompt_tokens=9,
    completion_tokens=11,
    prefill_seconds=0.25,
    decode_seconds=2.0,
    streamed_bytes=22_000_000,
    bound_seconds_per_token=0.16,
)
FINISHED = wire.Finished(request_id="r1", sequence=2, reason=FinishReason.STOP, usage=USAGE)
REQUEST = wire.Generate(model="tiny", prompt="hello")


def test_speed_counts_the_tokens_after_the_first_and_bytes_of_every_pass():
    speed = speed_of(USAGE)

    assert speed.tokens_per_second == pytest.approx(5.0)
    assert speed.share_of_bound == pytest.approx(0.8)
    assert speed.streamed_bytes_per_token == 2_000_000


def test_one_token_has_no_speed():
    usage = Usage(
        prompt_tokens=9,
        completion_tokens=1,
        prefill_seconds=0.25,
        decode_seconds=0.0,
        streamed_bytes=0,
        bound_seconds_per_token=0.16,
    )

    assert speed_of(usage).tokens_per_second is None
    assert speed_of(usage).share_of_bound is None


def test_timings_name_the_share_of_the_bound():
    answer = Answer(text="", first_token_seconds=0.3, seconds=2.5, num_prompt_tokens=9, finished=FINISHED)

    lines = timing_lines(answer)

    assert "speed        5.0 tokens/s" in lines
    assert "bound        6.2 tokens/s; reached 80% of it" in lines
    assert "streamed     2.0 MB per token" in lines


def test_an_answer_is_told_as_it_comes_and_timed_to_its_first_chunk(daemon):
    accepted = wire.Accepted(request_id="r1", num_prompt_tokens=9, context_tokens=64)
    chunks = (
        wire.TokenChunk(request_id="r1", sequence=0, token_ids=(1,), text="Hel", reasoning="hm"),
        wire.TokenChunk(request_id="r1", sequence=1, token_ids=(2,), text="lo"),
    )
    daemon.answer(wire.Generate, accepted, *chunks, FINISHED)
    heard: list[wire.Accepted | wire.TokenChunk] = []
    ticks = itertools.count()

    with Client(daemon.endpoint) as client:
        answer = stream_answer(client, REQUEST, heard.append, lambda: float(next(ticks)))

    assert heard == [accepted, *chunks]
    assert (answer.text, answer.first_token_seconds, answer.seconds) == ("Hello", 1.0, 2.0)


def test_calls_are_gathered_from_their_pieces():
    gathered = Gathered()
    deltas = (
        (wire.ToolCallDelta(index=0, id="a", name="f", arguments="{"), wire.ToolCallDelta(index=1, id="b", name="g")),
        (wire.ToolCallDelta(index=0, arguments="}"),),
    )

    for sequence, calls in enumerate(deltas):
        gathered.add(wire.TokenChunk(request_id="r", sequence=sequence, token_ids=(), text="", tool_calls=calls))

    assert gathered.tool_calls == (
        ToolCall(id="a", name="f", arguments="{}"),
        ToolCall(id="b", name="g", arguments=""),
    )


@pytest.mark.parametrize("after", [wire.Accepted, wire.TokenChunk])
def test_stopping_an_answer_cancels_it_and_leaves_the_client_usable(daemon, after: type):
    daemon.answer(
        wire.Generate,
        wire.Accepted(request_id="r1", num_prompt_tokens=9, context_tokens=64),
        wire.TokenChunk(request_id="r1", sequence=0, token_ids=(1,), text="Hel"),
    )
    daemon.answer(wire.Cancel, wire.Done())
    daemon.answer(wire.ListModels, wire.ModelList(models=()))

    def interrupt(event: object) -> None:
        if isinstance(event, after):
            raise KeyboardInterrupt

    with Client(daemon.endpoint) as client:
        with pytest.raises(KeyboardInterrupt):
            stream_answer(client, REQUEST, interrupt, lambda: 0.0)
        client.models()

    assert wire.Cancel(request_id="r1") in daemon.asked
