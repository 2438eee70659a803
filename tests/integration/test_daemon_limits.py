"""A real daemon with the fake worker: floods are refused at once, and whoever is not the flood does not notice."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator

import pytest

from teengined.client import AnswerEvent, AsyncClient, Client
from teengined.core.errors import QueueFull, QuotaExceeded, RequestError, TeengineError
from teengined.core.request import ChatMessage
from teengined.core.sampling import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind, SamplingParams
from teengined.protocol.messages import Accepted, Finished, Generate, TokenChunk
from tests.fakes.running_daemon import START_SECONDS, RunningDaemon, wait_until

pytestmark = pytest.mark.system
SETTINGS = """
[limits]
max_waiting = 24
max_waiting_tokens = 20000
max_owner_waiting = 8
max_owner_waiting_tokens = 9000
[batching]
max_running = 2
"""
NOBODY = 65534
# Becomes another user, asks for one short answer and tells it. It imports first: that user may not read our files.
ASK_ONCE = """
import os, sys
from teengined.client import Client
from teengined.core.request import ChatMessage
from teengined.core.sampling import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind, SamplingParams
from teengined.protocol.messages import Generate, TokenChunk
endpoint, user, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setgid(group)
os.setuid(user)
with Client(endpoint) as client:
    request = Generate(model="bytes", prompt="xyz", sampling=SamplingParams(max_tokens=6))
    print("".join(event.text for event in client.generate(request) if isinstance(event, TokenChunk)))
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.005"', settings=SETTINGS) as running:
        with running.client() as client:
            running.load(client)
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        wait_until(lambda: connected.requests().requests == (), "nothing is left of the test before")
        yield connected


def ask(prompt: str = "abc", max_tokens: int = 3000) -> Generate:
    return Generate(model="bytes", prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens))


async def outcome(client: AsyncClient, request: Generate, leave: asyncio.Event) -> str:
    """Return the code of the refusal and how it asks to come back, or `taken`; that answer is open until `leave`."""
    events = client.generate(request)
    try:
        assert isinstance(await anext(events), Accepted)
        await leave.wait()
    except TeengineError as error:
        when = "later" if error.retryable and (error.retry_after_seconds or 0) > 0 else "never"
        return f"{error.code}: {when}"
    else:
        return "taken"
    finally:
        await events.aclose()


def test_overload_is_refused_at_once_while_the_daemon_answers(daemon: RunningDaemon):
    async def story() -> tuple[Counter[str], int]:
        leave = asyncio.Event()
        async with AsyncClient(daemon.endpoint) as flood, AsyncClient(daemon.endpoint) as other:
            asking = [asyncio.create_task(outcome(flood, ask(), leave)) for _ in range(200)]
            num_refused = 0
            async with asyncio.timeout(START_SECONDS):
                while num_refused < 190:  # None of those that were taken comes to its end before that.
                    assert (await other.status()).state == "ready"
                    num_refused = sum(task.done() for task in asking)
            num_completed = (await other.deployments()).deployments[0].num_completed
            leave.set()
            return Counter(await asyncio.gather(*asking)), num_completed

    outcomes, num_completed = asyncio.run(story())

    assert outcomes == {"taken": 2 + 8, "quota_exceeded: later": 190}
    assert num_completed == 0


def running_and(other: Client, client: Client, waiting: list[Generate]) -> list[Generator[AnswerEvent]]:
    """Take both places among the running, and let more wait."""
    streams = [other.generate(ask()) for _ in range(2)]
    assert all(isinstance(next(stream), Accepted) for stream in streams)
    wait_until(lambda: client.status().num_running == 2, "both run")
    streams += [other.generate(request) for request in waiting]
    assert all(isinstance(next(stream), Accepted) for stream in streams[2:])
    return streams


def test_tokens_that_wait_are_limited_too(daemon: RunningDaemon, client: Client):
    with daemon.client() as other:
        streams = running_and(other, client, [ask("abc" * 900, max_tokens=1000)] * 3)

        with pytest.raises(QuotaExceeded, match="prompt tokens of 'uid:"):
            next(client.generate(ask("abc" * 1000, max_tokens=1000)))
        for stream in streams:
            stream.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_flood_of_one_user_leaves_room_for_another(daemon: RunningDaemon):
    async def story() -> str:
        async with AsyncClient(daemon.endpoint) as flood:
            leave = asyncio.Event()
            asking = [asyncio.create_task(outcome(flood, ask(), leave)) for _ in range(50)]
            await asyncio.to_thread(wait_until, lambda: sum(task.done() for task in asking) >= 40, "40 are refused")
            told = await asyncio.to_thread(ask_as_nobody, daemon)
            assert sum(task.done() for task in asking) == 40
            leave.set()
            await asyncio.gather(*asking)
            return told

    daemon.directory.chmod(0o755)
    assert asyncio.run(story()) == "xyzxyz\n"


def ask_as_nobody(daemon: RunningDaemon) -> str:
    """Ask as another user of the socket's group."""
    group = (daemon.runtime_dir / "teengined.sock").stat().st_gid
    command = [sys.executable, "-c", ASK_ONCE, daemon.endpoint, str(NOBODY), str(group)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_queue_of_all_users_together_is_limited():
    settings = SETTINGS.replace("max_waiting = 24", "max_waiting = 3")
    with (
        RunningDaemon(worker_arguments=', "--step-seconds", "0.005"', settings=settings) as running,
        running.client() as client,
        running.client() as other,
    ):
        running.load(client)
        streams = running_and(other, client, [ask()] * 3)

        with pytest.raises(QueueFull, match="the limit is 3") as caught:
            next(client.generate(ask()))

        assert (caught.value.retry_after_seconds or 0) > 0
        assert client.status().num_queued == len(streams) - 2 == 3


def test_refused_request_may_be_sent_again_and_succeeds(client: Client, daemon: RunningDaemon):
    with daemon.client() as other:
        streams = [other.generate(ask(max_tokens=30)) for _ in range(10)]
        assert all(isinstance(next(stream), Accepted) for stream in streams)
        with pytest.raises(QuotaExceeded):
            next(client.generate(ask()))
        for stream in streams:
            assert len([event for event in stream if isinstance(event, TokenChunk)]) == 30

        answer = [event for event in client.generate(ask(max_tokens=3)) if isinstance(event, TokenChunk)]

    assert json.dumps([event.text for event in answer]) == '["a", "b", "c"]'


def test_a_request_that_its_choices_make_large_on_the_way_to_the_workers_is_answered():
    # 256 KiB from the client, and 5 MiB for the workers: each choice is told all of its sampling.
    schema = '{"description":""}'
    text = schema.replace('""', '"' + "\N{GRINNING FACE}" * (MAX_GRAMMAR_CHARACTERS - len(schema)) + '"')
    grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, text=text)
    sampling = SamplingParams(max_tokens=2, num_choices=20, grammar=grammar)
    with RunningDaemon(settings="[batching]\nmax_choices = 20") as daemon, daemon.client() as client:
        daemon.load(client, num_slots=20, context_tokens=64)
        events = list(client.generate(Generate(model="bytes", prompt="abc", sampling=sampling)))

    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert finished.usage.completion_tokens == 40


def test_what_grammars_and_templates_may_cost_is_set():
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    settings = "[checks]\ngrammar_seconds = 0.25\ntemplate_seconds = 0.05"
    grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type":"integer","multipleOf":123456789}')
    with RunningDaemon(settings=settings) as daemon, daemon.client() as client:
        (next(daemon.directory.glob("store/*")) / "chat_template.jinja").write_text(endless)
        daemon.load(client)
        with pytest.raises(RequestError, match=r"more than 0\.25 s of processor time"):
            list(client.generate(Generate(model="bytes", prompt="abc", sampling=SamplingParams(grammar=grammar))))
        with pytest.raises(RequestError, match=r"it may run for 0\.05 s"):
            list(client.generate(Generate(model="bytes", messages=(ChatMessage(role="user", content="hi"),))))
