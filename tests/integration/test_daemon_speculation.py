"""A real daemon with the fake worker, guessing ahead: the same answers in fewer steps."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from teengined.client import AnswerEvent, AsyncClient, Client
from teengined.core.errors import RequestError, UnknownModel
from teengined.core.request import FinishReason, Usage
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Deployment, Finished, Generate, LoadModel, PlanModel, TokenChunk
from tests.fakes.byte_package import EOS, write_byte_package
from tests.fakes.running_daemon import RunningDaemon

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.002"', speculation="auto") as running:
        with running.client() as client:
            running.load(client, assignment={"cpu:1": 1, "cpu:0": 3})
            off = LoadModel(plan=PlanModel(model="bytes"), name="off", speculation="off")
            client.load(off)
            drafted = PlanModel(model="bytes", assignment={"cpu:1": 4})
            client.load(LoadModel(plan=drafted, name="drafted", speculation="draft", draft="off"))
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def ask(prompt: str, max_tokens: int = 60, **fields: Any) -> Generate:
    given: dict[str, Any] = {name: fields.pop(name) for name in ("model", "speculate") if name in fields}
    sampling = SamplingParams(max_tokens=max_tokens, **fields)
    given = {"model": "bytes", "prompt": prompt, "sampling": sampling} | given
    return Generate(**given)


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenChunk))


def tokens_of(events: list[AnswerEvent]) -> list[int]:
    return [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]


def deployment(client: Client, name: str) -> Deployment:
    return next(item for item in client.deployments().deployments if item.model == name)


def usage_of(events: list[AnswerEvent]) -> Usage:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.usage


def test_answer_that_repeats_itself_takes_fewer_steps(client: Client):
    events = list(client.generate(ask("abcdefgh", 200)))

    usage = usage_of(events)
    assert text_of(events) == "abcdefgh" * 25
    assert usage.completion_tokens == 200
    assert usage.accepted_tokens > 100
    assert usage.streamed_bytes == (200 - usage.accepted_tokens) * 2 * 1000  # Steps, stages, bytes of each.


@pytest.mark.parametrize("fields", [{"speculate": False}, {"model": "off"}])
def test_without_guesses_every_token_takes_its_step(client: Client, fields: dict[str, Any]):
    events = list(client.generate(ask("abcdefgh", 50, **fields)))

    assert text_of(events) == ("abcdefgh" * 7)[:50]
    assert usage_of(events).accepted_tokens == 0


def test_deployment_tells_what_became_of_its_guesses(client: Client):
    list(client.generate(ask("abcdefgh", 200)))

    (told,) = (item for item in deployment(client, "bytes").drafted if item.request_class == "greedy")
    assert told.source == "lookup"
    assert told.is_on
    assert 0 < told.num_accepted <= told.num_drafted
    assert deployment(client, "off").drafted == ()


@pytest.mark.parametrize("include", [False, True])
def test_stop_text_ends_the_answer_among_right_guesses(client: Client, include: bool):
    list(client.generate(ask("abcdefgh", 100)))  # Guesses are on from here.

    events = list(client.generate(ask("one END ", 90, min_tokens=33, stop=("END",), include_stop=include)))

    assert tokens_of(events) == list(b"one END " * 5)[:39]
    assert text_of(events) == ("one END " * 5)[: 39 if include else 36]
    assert usage_of(events).completion_tokens == 39
    assert events[-1].reason is FinishReason.STOP  # type: ignore[union-attr]


def test_end_of_sequence_ends_the_answer_among_right_guesses(client: Client):
    request = Generate(
        model="bytes", token_ids=(97, 98, EOS, 99), sampling=SamplingParams(max_tokens=90, min_tokens=21)
    )

    events = list(client.generate(request))

    assert tokens_of(events) == [97, 98, EOS, 99] * 5 + [97, 98, EOS]


def test_log_probabilities_come_one_with_each_token(client: Client):
    events = list(client.generate(ask("abcdefgh", 80, logprobs=2)))

    chunks = [event for event in events if isinstance(event, TokenChunk)]
    assert [item.token_id for chunk in chunks for item in chunk.logprobs] == tokens_of(events)
    assert max(len(chunk.token_ids) for chunk in chunks) > 1


def test_many_answers_at_once_are_each_their_own(daemon: RunningDaemon):
    async def story() -> list[str]:
        async with AsyncClient(daemon.endpoint) as client:

            async def one(number: int) -> str:
                request = ask(chr(97 + number) * 2 + "xyz" + str(number), 40 + number, num_choices=1 + number % 2)
                events = [event async for event in client.generate(request)]
                return "".join(e.text for e in events if isinstance(e, TokenChunk) and e.choice == 0)

            return await asyncio.gather(*(one(number) for number in range(24)))

    texts = asyncio.run(story())

    expected = [((chr(97 + n) * 2 + "xyz" + str(n)) * 20)[: 40 + n] for n in range(24)]
    assert texts == expected


def test_draft_model_changes_no_answer(client: Client):
    for number in range(3):
        prompt = "abcdefgh"[: 4 + number]
        events = list(client.generate(ask(prompt, 100, model="drafted", temperature=float(number))))
        assert text_of(events) == (prompt * 30)[:100]

    (told,) = (item for item in deployment(client, "drafted").drafted if item.request_class == "greedy")
    assert told.source == "draft"
    assert told.num_drafted > 0
    assert (deployment(client, "drafted").draft, deployment(client, "drafted").speculation) == ("off", "draft")
    assert deployment(client, "off").draft == ""


def test_draft_model_is_held_to_what_it_is_for(client: Client):
    plan = PlanModel(model="bytes")

    with pytest.raises(UnknownModel, match="no model to draft for x: 'nobody' is not loaded") as refused:
        client.load(LoadModel(plan=plan, name="x", draft="nobody"))
    assert refused.value.hint == "load the draft model first: `teengine load nobody`"
    with pytest.raises(RequestError, match="speculation by a draft model needs one"):
        client.load(LoadModel(plan=plan, name="x", speculation="draft"))
    with pytest.raises(RequestError, match="a draft model is named, and speculation is off"):
        client.load(LoadModel(plan=plan, name="x", speculation="off", draft="off"))


def test_draft_model_of_another_vocabulary_is_refused_by_name(daemon: RunningDaemon, client: Client):
    other = write_byte_package(daemon.directory / "store", "others")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    client.load(LoadModel(plan=PlanModel(model="others"), verify=False))

    with pytest.raises(RequestError, match=r"others cannot draft for bytes2: .* differ in 'a'"):
        client.load(LoadModel(plan=PlanModel(model="bytes"), name="bytes2", draft="others"))

    assert "bytes2" not in {item.model for item in client.deployments().deployments}
    client.unload("others")


def test_answers_go_on_where_the_draft_model_is_unloaded(client: Client):
    client.load(LoadModel(plan=PlanModel(model="bytes"), name="small", speculation="off"))
    client.load(LoadModel(plan=PlanModel(model="bytes"), name="large", speculation="draft", draft="small"))
    events: list[AnswerEvent] = []

    for event in client.generate(ask("abcdefgh", 200, model="large")):
        events.append(event)
        if len(events) == 20:
            with_daemon = Client(client.endpoint)
            with_daemon.unload("small", now=True)
            with_daemon.close()

    assert text_of(events) == "abcdefgh" * 25
    assert text_of(list(client.generate(ask("abc", 60, model="large")))) == "abc" * 20
    client.unload("large")
