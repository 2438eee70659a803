"""A real daemon with the fake worker: what an answer is, and what is refused before anything is promised."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import zmq

from teengined.client import AnswerEvent, AsyncClient, Client
from teengined.core.errors import (
    ConfigError,
    Conflict,
    ContextTooLong,
    DeadlineExceeded,
    RequestError,
    UnknownModel,
    UnknownRequest,
)
from teengined.core.plan import Tier
from teengined.core.request import ChatMessage, FinishReason
from teengined.core.sampling import SamplingParams
from teengined.protocol.codec import CodecLimits, Envelope, encode
from teengined.protocol.messages import CLIENT_MESSAGES, Accepted, Finished, Generate, PlanModel, TokenChunk
from tests.fakes.byte_package import EOS
from tests.fakes.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.002"') as running:
        with running.client() as client:
            running.load(client, assignment={"cpu:1": 1, "cpu:0": 3})
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def ask(prompt: str, max_tokens: int = 8, timeout_seconds: float = 0.0) -> Generate:
    sampling = SamplingParams(max_tokens=max_tokens)
    return Generate(model="bytes", prompt=prompt, sampling=sampling, timeout_seconds=timeout_seconds)


def complete(events: Iterator[AnswerEvent]) -> tuple[Accepted, list[TokenChunk], Finished]:
    """Read an answer to its end."""
    accepted, *chunks, finished = events
    assert isinstance(accepted, Accepted)
    assert isinstance(finished, Finished)
    return accepted, [chunk for chunk in chunks if isinstance(chunk, TokenChunk)], finished


def text_of(events: Sequence[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenChunk))


def test_answer_is_accepted_streamed_and_finished_in_order(client: Client):
    accepted, chunks, finished = complete(client.generate(ask("abc", max_tokens=7)))

    assert accepted.num_prompt_tokens == 3
    assert [chunk.sequence for chunk in chunks] == list(range(7))
    assert text_of(chunks) == "abcabca"
    assert finished.reason is FinishReason.LENGTH
    assert finished.usage.completion_tokens == 7


def test_usage_counts_the_bytes_that_stages_streamed(client: Client):
    _, _, finished = complete(client.generate(ask("abc", max_tokens=5)))

    assert finished.usage.streamed_bytes == 5 * 2 * 1000  # tokens, stages, bytes a step of the fake worker
    assert finished.usage.bound_seconds_per_token > 0


def test_characters_cut_across_tokens_arrive_whole(client: Client):
    chunks = [event for event in client.generate(ask("é😀", max_tokens=12)) if isinstance(event, TokenChunk)]

    assert text_of(chunks) == "é😀é😀"
    assert [chunk.text for chunk in chunks[:6]] == ["", "é", "", "", "", "😀"]


def test_prompt_longer_than_the_context_is_to_be_shortened(client: Client):
    with pytest.raises(ContextTooLong) as caught:
        list(client.generate(ask("a" * 5000, max_tokens=1)))

    assert caught.value.hint.startswith("shorten the prompt")


def test_character_that_never_becomes_whole_is_told_at_the_end(client: Client):
    _, chunks, finished = complete(client.generate(ask("😀", max_tokens=5)))

    assert text_of(chunks) == "😀\N{REPLACEMENT CHARACTER}"
    assert [chunk.sequence for chunk in chunks] == list(range(5))
    assert (chunks[-1].reason, finished.sequence) == (FinishReason.LENGTH, 5)


def test_chat_goes_through_the_template(client: Client):
    request = Generate(
        model="bytes", messages=(ChatMessage(role="user", content="hi"),), sampling=SamplingParams(max_tokens=8)
    )

    accepted, chunks, _ = complete(client.generate(request))

    assert accepted.num_prompt_tokens == len("[user]hi") + 1 + len("[assistant]")
    assert text_of(chunks) == "[user]hi"


def test_template_that_refuses_is_told_to_the_caller(client: Client):
    request = Generate(model="bytes", messages=(ChatMessage(role="robot", content="hi"),))

    with pytest.raises(RequestError, match="no robots"):
        list(client.generate(request))


def test_end_of_sequence_ends_the_answer_without_text(client: Client):
    request = Generate(model="bytes", token_ids=(97, 98, EOS, 99))

    _, chunks, finished = complete(client.generate(request))

    assert text_of(chunks) == "ab"
    assert finished.reason is FinishReason.STOP
    assert finished.usage.completion_tokens == 3


def test_end_of_sequence_is_passed_where_the_caller_ignores_it(client: Client):
    sampling = SamplingParams(max_tokens=4, ignore_eos=True)

    _, _, finished = complete(client.generate(Generate(model="bytes", token_ids=(97, EOS), sampling=sampling)))

    assert finished.reason is FinishReason.LENGTH


def test_long_prompt_is_prefilled_in_chunks(client: Client):
    prompt = "".join(chr(97 + index % 26) for index in range(1200))

    assert text_of(list(client.generate(ask(prompt, max_tokens=30)))) == prompt[:30]


def test_many_answers_at_once_each_get_their_own_text(daemon: RunningDaemon):
    async def one(client: AsyncClient, index: int) -> str:
        prompt = f"<{index}>"
        events = [event async for event in client.generate(ask(prompt * 20, max_tokens=30))]
        assert text_of(events).startswith(prompt)
        return text_of(events)

    async def all_of_them() -> list[str]:
        async with AsyncClient(daemon.endpoint) as client:
            return await asyncio.gather(*(one(client, index) for index in range(12)))

    assert len(set(asyncio.run(all_of_them()))) == 12


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        (Generate(model="nobody", prompt="a"), UnknownModel, "loaded models: bytes"),
        (Generate(model="bytes"), RequestError, "exactly one of"),
        (Generate(model="bytes", prompt="a", token_ids=(1,)), RequestError, "exactly one of"),
        (Generate(model="bytes", prompt=""), RequestError, "no tokens"),
        (Generate(model="bytes", token_ids=(1, 258)), RequestError, "between 0 and 257"),
        (Generate(model="bytes", token_ids=(-1,)), RequestError, "between 0 and 257"),
        (ask("abc", max_tokens=4094), ContextTooLong, "3 prompt tokens and max_tokens 4094 make 4097"),
        (ask("a" * 5000, max_tokens=1), ContextTooLong, "5000 prompt tokens"),
    ],
)
def test_request_that_cannot_succeed_is_refused(client: Client, request_, error, told):
    with pytest.raises(error, match=told):
        list(client.generate(request_))


def test_cancel_from_beside_ends_the_answer_as_cancelled(client: Client):
    events = client.generate(ask("abc", max_tokens=4000))
    accepted = next(events)
    next(events)
    assert isinstance(accepted, Accepted)

    client.cancel(accepted.request_id)

    last = list(events)[-1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.CANCELLED


def test_cancel_of_an_unknown_request_is_an_error(client: Client):
    with pytest.raises(UnknownRequest):
        client.cancel("0000")


def num_completed(client: Client) -> int:
    """Count the answers that came to their own end; cancelled ones do not."""
    return sum(deployment.num_completed for deployment in client.deployments().deployments)


def test_leaving_the_iteration_early_cancels(client: Client):
    before = num_completed(client)

    for event in client.generate(ask("abc", max_tokens=4000)):
        if isinstance(event, TokenChunk):
            break

    wait_until(lambda: client.status().num_running == 0, "the abandoned answer is cancelled")
    assert num_completed(client) == before


def test_leaving_before_the_request_is_accepted_cancels(daemon: RunningDaemon, client: Client):
    before = num_completed(client)

    async def leave_at_once() -> None:
        async with AsyncClient(daemon.endpoint) as leaving:
            await leaving.status()
            asking = asyncio.create_task(anext(leaving.generate(ask("a" * 3000, max_tokens=500))))
            await asyncio.sleep(0)  # The request leaves in the task's first step.
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            # The connection stays, so that nothing else would end the request.
            while (await leaving.requests()).requests or (await leaving.status()).num_running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave_at_once(), 30))
    assert num_completed(client) == before


def test_leaving_before_the_acceptance_is_read_cancels_for_the_blocking_client_too(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    before = num_completed(client)

    def interrupted(*_, **__) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(client.generate(ask("a" * 3000, max_tokens=500)))

    wait_until(lambda: not client.requests().requests and not client.status().num_running, "nothing is left running")
    assert num_completed(client) == before


def test_client_that_vanishes_is_noticed_and_its_answer_cancelled(daemon: RunningDaemon, client: Client):
    before = num_completed(client)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(daemon.endpoint)
    envelope = Envelope(correlation=1, message=ask("abc", max_tokens=4000))
    socket.send_multipart(encode(envelope, CLIENT_MESSAGES, CodecLimits()))
    socket.recv_multipart()

    socket.close(linger=0)
    context.term()

    wait_until(lambda: client.status().num_running == 0, "the vanished client's answer is cancelled")
    assert num_completed(client) == before


def test_answer_that_takes_longer_than_asked_fails(client: Client):
    with pytest.raises(DeadlineExceeded):
        list(client.generate(ask("abc", max_tokens=4000, timeout_seconds=0.2)))


def test_one_package_can_be_loaded_twice_under_two_names(daemon: RunningDaemon, client: Client):
    loaded = daemon.load(client, name="again")

    assert [item.model for item in client.deployments().deployments] == ["again", "bytes"]
    events = list(client.generate(Generate(model="again", prompt="xy", sampling=SamplingParams(max_tokens=4))))
    assert text_of(events) == "xyxy"
    assert loaded.deployment.state == "ready"
    client.unload("again")
    assert [item.model for item in client.deployments().deployments] == ["bytes"]


def test_a_deployment_can_be_told_of_without_where_each_unit_rests(client: Client):
    whole, brief = client.deployments().deployments[0], client.deployments(placements=False).deployments[0]
    told = client.status(placements=False).deployments[0]

    assert all(stage.units for stage in whole.plan.stages)
    assert [stage.units for stage in brief.plan.stages] == [(), ()]
    assert replace(brief, plan=whole.plan, kv_tiers=whole.kv_tiers) == whole
    assert told.plan == brief.plan
    streamed = [unit.tier for stage in whole.plan.stages for unit in stage.units if unit.tier is not Tier.DEVICE]
    assert (brief.num_host_units, brief.num_disk_units) == (streamed.count(Tier.HOST), streamed.count(Tier.DISK))


def test_name_that_is_taken_and_package_in_use_are_conflicts(daemon: RunningDaemon, client: Client):
    with pytest.raises(Conflict):
        daemon.load(client)
    with pytest.raises(Conflict):
        client.remove("bytes")


def test_loaded_models_take_from_the_budget_of_the_next_plan(daemon: RunningDaemon, client: Client):
    planned = {device.spec.id: device.planned_bytes for device in client.status().devices}
    stages = client.deployments().deployments[0].plan.stages

    assert planned == {stage.device_id: stage.total_bytes for stage in stages}


def test_plans_reserve_kv_as_it_is_to_be_kept(client: Client):
    kv_bytes = {}
    for kv_dtype in ("", "auto", "int8"):
        plan = client.plan(PlanModel(model="bytes", device_ids=("cpu:0",), kv_dtype=kv_dtype)).plan
        kv_bytes[kv_dtype] = plan.stages[0].kv_bytes

    tokens = 4 * 4096
    assert kv_bytes == {"": tokens * 4 * 16 * 4, "auto": tokens * 4 * 16 * 4, "int8": tokens * 4 * (16 + 4)}


@pytest.mark.parametrize(
    "request_",
    [
        PlanModel(model="bytes", num_slots=2**62),
        PlanModel(model="bytes", context_tokens=2**62),
        PlanModel(model="bytes", policy="p" * 1_000_000),
        PlanModel(model="bytes", device_ids=("d" * 1_000_000,)),
        PlanModel(model="bytes", assignment={"cpu:0": 2**62}),
    ],
)
def test_plan_that_nothing_can_mean_is_refused_in_a_few_words(client: Client, request_: PlanModel):
    with pytest.raises((RequestError, ConfigError)) as caught:
        client.plan(request_)

    assert len(caught.value.message) < 300


def test_inspection_calls_tell_what_is_there(client: Client):
    assert [model.name for model in client.models().models] == ["bytes"]
    assert client.models("x").models == ()
    assert client.show("bytes").vocab_size == 258
    assert {"driver", "scheduling-policy"} <= {plugin.kind for plugin in client.plugins().plugins}
    assert any(item.origin.startswith("file ") for item in client.config().items)
    assert [profile.device_id for profile in client.measure().devices] == ["cpu:0", "cpu:1"]
    with pytest.raises(UnknownModel, match="nothing"):
        client.show("nothing")
