"""A real daemon with the fake worker: many answers at once, each its own, whatever runs beside it.

The fake worker keeps tokens where a real one keeps keys and values, and answers from them: a wrong block is a wrong
letter.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from teengined.client import AnswerEvent, AsyncClient, Client
from teengined.core.errors import Conflict, ContextTooLong, NumericalFault, RequestError, UnknownModel, UnknownRequest
from teengined.core.request import ChatMessage, FinishReason
from teengined.core.sampling import Grammar, GrammarKind, SamplingParams
from teengined.protocol.messages import Accepted, Finished, Generate, TokenChunk
from tests.fakes.byte_package import EOS
from tests.fakes.fake_worker import FAULT
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


def ask(prompt: str, max_tokens: int = 8, **fields) -> Generate:
    names = ("client_id", "priority", "cache_salt", "credits", "model")
    request = {name: fields.pop(name) for name in names if name in fields}
    sampling = SamplingParams(max_tokens=max_tokens, **fields)
    given: dict[str, Any] = {"model": "bytes", "prompt": prompt, "sampling": sampling, **request}
    return Generate(**given)


def chunks_of(events: list[AnswerEvent]) -> list[TokenChunk]:
    return [event for event in events if isinstance(event, TokenChunk)]


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(chunk.text for chunk in chunks_of(events))


def finished(events: list[AnswerEvent]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


def repeated(prompt: str, length: int, start: int = 0) -> str:
    """Return what the fake worker answers."""
    return "".join(prompt[(start + index) % len(prompt)] for index in range(length))


def test_choices_share_one_prompt_and_one_count_of_chunks(client: Client):
    events = list(client.generate(ask("abcde", max_tokens=7, num_choices=3)))

    texts: dict[int, str] = defaultdict(str)
    for chunk in chunks_of(events):
        texts[chunk.choice] += chunk.text
    assert texts == {choice: repeated("abcde", 7, choice) for choice in range(3)}
    assert [chunk.sequence for chunk in chunks_of(events)] == list(range(finished(events).sequence))
    ends = [(chunk.choice, chunk.reason) for chunk in chunks_of(events) if chunk.reason]
    assert sorted(ends) == [(choice, FinishReason.LENGTH) for choice in range(3)]
    assert finished(events).usage.completion_tokens == 21


def test_choices_that_stop_at_different_times_each_say_so(client: Client):
    request = Generate(model="bytes", token_ids=(97, 98, 99, EOS), sampling=SamplingParams(num_choices=2))

    events = list(client.generate(request))

    assert [chunk.token_ids[-1] for chunk in chunks_of(events) if chunk.reason is FinishReason.STOP] == [EOS, EOS]
    assert finished(events).usage.completion_tokens == 4 + 3


@pytest.mark.parametrize(("include", "text"), [(False, "one "), (True, "one END")])
def test_stop_text_across_tokens_ends_the_answer(client: Client, include: bool, text: str):
    events = list(client.generate(ask("one END two", max_tokens=40, stop=("END", "x"), include_stop=include)))

    assert text_of(events) == text
    assert [token for chunk in chunks_of(events) for token in chunk.token_ids] == list(b"one END")
    assert chunks_of(events)[-1].reason is FinishReason.STOP
    assert finished(events).reason is FinishReason.STOP


def test_part_of_a_stop_text_is_told_when_the_answer_ends_without_the_rest(client: Client):
    assert text_of(list(client.generate(ask("abEN", max_tokens=4, stop=("END",))))) == "abEN"


def test_stop_texts_wait_for_the_least_number_of_tokens(client: Client):
    events = list(client.generate(ask("ab", max_tokens=20, min_tokens=5, stop=("b",))))

    assert text_of(events) == "ababa"


def test_log_probabilities_come_with_their_tokens_and_those_of_the_prompt_at_the_end(client: Client):
    events = list(client.generate(ask("abcb", max_tokens=5, logprobs=2, prompt_logprobs=1)))

    chunks = chunks_of(events)
    assert [item.token_id for chunk in chunks for item in chunk.logprobs] == list(b"abcba")
    assert all(len(item.top) == 2 for chunk in chunks for item in chunk.logprobs)
    told = finished(events).prompt_logprobs
    assert [item.token_id for item in told] == list(b"bcb")
    assert [item.logprob for item in told] == [-0.25, -0.25, -4.0]


def test_log_probabilities_of_a_prompt_of_many_chunks_are_whole(client: Client):
    prompt = "".join(chr(97 + index % 26) for index in range(1300))

    told = finished(list(client.generate(ask(prompt, max_tokens=1, prompt_logprobs=0)))).prompt_logprobs

    assert bytes(item.token_id for item in told).decode() == prompt[1:]


def test_prompts_that_begin_alike_are_computed_once_for_one_owner_and_salt(client: Client):
    prompt = "the same beginning, long enough for some blocks of sixteen tokens; "

    def cached(end: str, salt: str = "") -> int:
        events = list(client.generate(ask(prompt + end, max_tokens=70, cache_salt=salt)))
        assert text_of(events) == repeated(prompt + end, 70)
        return finished(events).usage.cached_tokens

    assert [cached("one"), cached("two"), cached("three", "other")] == [0, 64, 0]


def test_sixty_four_requests_of_eight_clients_each_get_their_own_answer(daemon: RunningDaemon):
    async def one(client: AsyncClient, index: int) -> None:
        prompt = f"<{index}>" * (1 + index)
        events = [event async for event in client.generate(ask(prompt, max_tokens=40))]
        assert text_of(events) == repeated(prompt, 40)

    async def all_of_them() -> None:
        clients = [AsyncClient(daemon.endpoint) for _ in range(8)]
        await asyncio.gather(*(one(clients[index % 8], index) for index in range(64)))
        await asyncio.gather(*(client.close() for client in clients))

    asyncio.run(all_of_them())


def test_sequences_that_outgrow_the_kv_give_it_up_and_still_answer(daemon: RunningDaemon, client: Client):
    daemon.load(client, name="tight", num_slots=1, context_tokens=256, assignment={"cpu:0": 4})

    async def one(connected: AsyncClient, index: int) -> None:
        prompt = chr(97 + index) * 3 + f"{index} words of a prompt"
        events = [event async for event in connected.generate(ask(prompt, max_tokens=150, model="tight"))]
        assert text_of(events) == repeated(prompt, 150)

    async def all_of_them() -> None:
        async with AsyncClient(daemon.endpoint) as connected:
            await asyncio.gather(*(one(connected, index) for index in range(8)))

    asyncio.run(all_of_them())

    deployment = client.deployments().deployments[1]
    assert deployment.model == "tight"
    assert deployment.num_preempted > 0
    assert (deployment.num_blocks, deployment.num_used_blocks) == (16, 0)
    client.unload("tight")


def test_what_gave_way_comes_back_from_disk_and_ps_tells_of_it():
    settings = '[kv]\nhost_spool = "64KiB"\ndisk_spool = "1MiB"\n[streaming]\nmax_step_tokens = 16'
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.002"', settings=settings) as running:

        async def one(connected: AsyncClient, index: int) -> str:
            prompt = repeated("abcdefgh"[index % 8], 20, index)
            return text_of([event async for event in connected.generate(ask(prompt, 100))])

        async def all_of_them() -> list[str]:
            async with AsyncClient(running.endpoint) as connected, asyncio.timeout(60):
                return await asyncio.gather(*(one(connected, index) for index in range(12)))

        with running.client() as client:
            running.load(client, context_tokens=128, num_slots=1)
            together = asyncio.run(all_of_them())
            (deployment,) = client.deployments().deployments
            alone = [text_of(list(client.generate(ask(repeated("abcdefgh"[i % 8], 20, i), 100)))) for i in range(12)]
            files = list((running.directory).rglob("stage0"))

    tiers = deployment.kv_tiers
    assert together == alone
    assert deployment.num_preempted > 0
    assert tiers.num_host_slots > 0
    assert min(tiers.num_spooled, tiers.num_restored) > 0
    assert tiers.compute_block_seconds > 0
    assert [file for file in files if file.is_file()] == []


def test_deployment_tells_how_it_is_used(client: Client):
    events = client.generate(ask("abc" * 20, max_tokens=500))
    for _ in range(100):
        next(events)

    deployment = client.deployments().deployments[0]

    assert (deployment.num_running, deployment.num_queued, deployment.num_queued_tokens) == (1, 0, 0)
    assert 0 < deployment.num_used_blocks <= deployment.num_blocks == 4 * 4096 // 16
    assert deployment.total_tokens_per_second > 0
    assert len(deployment.stage_bubbles) == 2
    assert all(0 < share < 1 for share in deployment.stage_bubbles)


def test_faulty_numbers_fail_their_request_and_no_other(daemon: RunningDaemon, client: Client):
    before = client.status().devices[0].worker_pid
    beside = client.generate(ask("abc", max_tokens=300))
    next(beside)

    with pytest.raises(NumericalFault, match="logits are not numbers"), daemon.client() as other:
        list(other.generate(ask(chr(FAULT) + "bc")))

    assert text_of(list(beside)) == repeated("abc", 300)
    assert client.status().devices[0].worker_pid == before


def test_choice_that_fails_fails_its_request_at_once(client: Client):
    with pytest.raises(NumericalFault):
        list(client.generate(ask(chr(FAULT) + "bc", max_tokens=3000, num_choices=4)))

    wait_until(lambda: client.status().num_running == 0, "the other choices are stopped")


def test_requests_are_listed_while_they_are_under_way(client: Client):
    events = client.generate(ask("abc", max_tokens=3000, client_id="mine", priority=7, num_choices=2))
    accepted = next(events)
    next(events)

    (item,) = client.requests("bytes").requests

    assert isinstance(accepted, Accepted)
    assert (item.request_id, item.model, item.client_id, item.priority) == (accepted.request_id, "bytes", "mine", 7)
    assert (item.state, item.num_choices, item.num_prompt_tokens, item.max_tokens) == ("decode", 2, 3, 3000)
    assert item.owner.startswith("uid:")
    assert item.num_emitted_tokens > 0
    events.close()
    wait_until(lambda: client.requests().requests == (), "nothing is listed any more")
    with pytest.raises(UnknownModel):
        client.requests("nobody")


def test_name_of_a_request_is_its_owners_while_it_is_under_way(daemon: RunningDaemon, client: Client):
    with daemon.client() as other:
        events = client.generate(ask("abc", max_tokens=3000, client_id="mine"))
        next(events)

        with pytest.raises(Conflict, match="client_id 'mine' is under way"):
            list(other.generate(ask("abc", client_id="mine")))
        assert text_of(list(other.generate(ask("abc", max_tokens=3, client_id="yours")))) == "abc"

        events.close()
        wait_until(lambda: client.requests().requests == (), "the first is over")
        assert text_of(list(other.generate(ask("abc", max_tokens=3, client_id="mine")))) == "abc"


def test_name_is_free_again_after_a_refusal(client: Client):
    for _ in range(2):
        with pytest.raises(ContextTooLong):
            list(client.generate(ask("abc", max_tokens=5000, client_id="mine")))


@pytest.mark.parametrize("text", ["\0", "a\0b", "e\N{COMBINING ACUTE ACCENT}", "\N{ZERO WIDTH JOINER}" * 20, "\uffff"])
def test_strange_text_comes_back_as_it_was(client: Client, text: str):
    assert text_of(list(client.generate(ask(text, max_tokens=len(text.encode()))))) == text


def test_megabyte_of_joiners_is_refused_and_nobody_else_waits(daemon: RunningDaemon, client: Client):
    beside = client.generate(ask("abc", max_tokens=200))
    next(beside)

    with pytest.raises(ContextTooLong, match="prompt tokens"), daemon.client() as other:
        list(other.generate(ask("\N{ZERO WIDTH JOINER}" * (1 << 20))))

    assert text_of(list(beside)) == repeated("abc", 200)


def test_text_that_is_no_unicode_never_leaves_the_client(client: Client):
    with pytest.raises(RequestError, match="not valid Unicode"):
        list(client.generate(ask("a\ud800b")))
    with pytest.raises(RequestError, match="not valid Unicode"):
        list(client.generate(ask("ab", stop=("\udfff",))))


def test_more_choices_than_allowed_are_refused(client: Client):
    with pytest.raises(RequestError, match="the limit is 16"):
        list(client.generate(ask("abc", num_choices=17)))


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (Grammar(kind=GrammarKind.REGEX, text="a("), "regex"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": '), "JSON"),
        (Grammar(kind=GrammarKind.LARK, text="nonsense"), "lark"),
    ],
)
def test_grammar_that_cannot_be_followed_is_refused_before_anything_runs(client: Client, grammar: Grammar, told: str):
    with pytest.raises(RequestError, match=f"(?i){told}"):
        list(client.generate(ask("abc", grammar=grammar)))


def test_grammar_that_can_be_followed_is_admitted(client: Client):
    grammar = Grammar(kind=GrammarKind.CHOICE, choices=("abc", "xyz"))

    assert text_of(list(client.generate(ask("abc", max_tokens=3, grammar=grammar)))) == "abc"


def test_cancel_of_what_is_over_is_told(client: Client):
    events = list(client.generate(ask("abc")))

    with pytest.raises(UnknownRequest, match="is under way"):
        client.cancel(finished(events).request_id)


def test_reasoning_and_calls_of_tools_are_told_apart_where_the_model_has_a_format():
    said = '<think>hm</think>ok<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    request = Generate(
        model="bytes",
        messages=(ChatMessage(role="user", content=said),),
        sampling=SamplingParams(max_tokens=len(said)),
        tools=('{"type": "function", "function": {"name": "f"}}',),
        parse=True,
    )
    with RunningDaemon() as running, running.client() as client:
        template = next(running.directory.glob("store/*")) / "chat_template.jinja"
        template.write_text("{# <tool_call> #}{{ messages[0].content }}")
        running.load(client)

        chunks = chunks_of(list(client.generate(request)))
        plain = text_of(list(client.generate(replace(request, parse=False))))

    assert "".join(chunk.reasoning for chunk in chunks) == "hm"
    assert "".join(chunk.text for chunk in chunks) == "ok"
    (call,) = [call for chunk in chunks for call in chunk.tool_calls]
    assert (call.name, call.arguments) == ("f", '{"a": 1}')
    assert plain == said
