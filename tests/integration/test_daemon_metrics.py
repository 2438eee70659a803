"""A real daemon with the fake worker: its counters say what was done, over its socket and over HTTP."""

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from teengined.client import Client
from teengined.core.errors import ContextTooLong, TeengineError, UnknownModel, WorkerLost
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Accepted, Embed, Generate, Score, TokenChunk
from tests.fakes.raw_client import RawClient
from tests.fakes.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.system
SETTINGS = """
[metrics]
listen = "127.0.0.1:0"
[batching]
prefix_cache = true
"""
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(settings=SETTINGS) as running:
        with running.client() as client:
            running.load(client, assignment={"cpu:1": 1, "cpu:0": 3})
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected


def read(text: str) -> Values:
    """Return every sample of an exposition by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(values: Values, name: str, **labels: str) -> float:
    return values.get((f"teengine_{name}", frozenset(labels.items())), 0.0)


def ask(prompt: str, max_tokens: int = 4, **more) -> Generate:
    return Generate(model="bytes", prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens, **more))


def scrape(daemon: RunningDaemon, method: str = "GET", path: str = "/metrics") -> http.client.HTTPResponse:
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", daemon.log())
    assert found is not None
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
    connection.request(method, path)
    return connection.getresponse()


def test_counters_say_what_a_script_of_requests_did(daemon: RunningDaemon, client: Client):
    shared = "a prompt of forty characters, or 2.5 blocks"
    for _ in range(2):
        list(client.generate(ask(shared, max_tokens=4)))
    list(client.generate(ask("xyz", max_tokens=3, num_choices=2)))
    client.score(Score(model="bytes", context="ab", continuation="cde"))
    client.embed(Embed(model="bytes", texts=("abcd", "efg")))
    for request, error in ((ask("a" * 5000), ContextTooLong), (Generate(model="who?", prompt="a"), UnknownModel)):
        with pytest.raises(error):
            list(client.generate(request))

    values = read(client.metrics().text)

    outcomes = {("generate", "length"): 3, ("score", "done"): 1, ("embed", "done"): 1}
    for (kind, outcome), count in outcomes.items():
        assert of(values, "requests_total", model="bytes", kind=kind, outcome=outcome) == count
    assert of(values, "requests_total", model="bytes", kind="generate", outcome="context_too_long") == 1
    assert of(values, "requests_refused_total", model="bytes", kind="generate", code="context_too_long") == 1
    assert of(values, "requests_refused_total", model="", kind="generate", code="unknown_model") == 1
    assert of(values, "prompt_tokens_total", model="bytes") == 2 * len(shared) + 3 + 5 + 4 + 3
    assert of(values, "cached_prompt_tokens_total", model="bytes") == 32
    assert of(values, "generation_tokens_total", model="bytes") == 2 * 4 + 2 * 3
    assert of(values, "request_queue_time_seconds_count", model="bytes") == 6
    assert of(values, "time_to_first_token_seconds_count", model="bytes") == 3
    assert of(values, "inter_token_latency_seconds_count", model="bytes") == 2 * 3 + 2 * 2
    assert of(values, "e2e_request_latency_seconds_count", model="bytes") == 5
    num_steps = of(values, "step_duration_seconds_count", model="bytes")
    assert num_steps == of(values, "step_tokens_count", model="bytes") > 0
    for stage, device in (("0", "cpu:1"), ("1", "cpu:0")):
        where = {"model": "bytes", "stage": stage, "device": device}
        assert of(values, "stage_streamed_bytes_total", **where) == 1000 * num_steps
        assert of(values, "stage_busy_seconds_total", **where) > 0
        assert of(values, "worker_up", device=device) == 1
    assert of(values, "kv_blocks", model="bytes") > 0
    assert of(values, "requests_running", model="bytes") == 0
    assert of(values, "model_state", model="bytes", state="ready") == 1
    assert of(values, "calls") == 1  # This one.


def test_what_runs_and_waits_is_told_while_it_does(daemon: RunningDaemon, client: Client):
    answer = client.generate(ask("abc", max_tokens=3000))
    assert isinstance(next(answer), Accepted)
    assert isinstance(next(answer), TokenChunk)

    values = read(client.metrics().text)
    answer.close()

    assert of(values, "requests_running", model="bytes") == 1
    assert of(values, "kv_blocks_used", model="bytes") > 0
    assert of(values, "generation_tokens_per_second", model="bytes") > 0
    assert of(values, "calls") == 2


def test_worker_that_dies_is_counted_and_so_is_the_next_one(daemon: RunningDaemon, client: Client):
    with pytest.raises(WorkerLost):
        list(client.generate(ask("\x01abc")))
    wait_until(lambda: client.deployments().deployments[0].state == "ready", "the model is back")

    values = read(client.metrics().text)

    lost = [of(values, "worker_losses_total", device=device) for device in ("cpu:0", "cpu:1")]
    assert sorted(lost) == [0, 1]
    assert lost == [of(values, "worker_restarts_total", device=device) for device in ("cpu:0", "cpu:1")]
    assert of(values, "requests_total", model="bytes", kind="generate", outcome="worker_lost") == 1
    assert of(values, "requests_refused_total", model="bytes", kind="generate", code="worker_lost") == 0


def test_messages_that_are_none_are_counted_by_code(daemon: RunningDaemon, client: Client):
    with RawClient(daemon.endpoint) as raw:
        for _ in range(3):
            raw._socket.send_multipart([b"TE\x01", b"\x93\x01\xa5hello\xc1"])
            raw.receive()
        raw._socket.send_multipart([b"TE\x07", b"\x93\x01\xa5hello\x80"])

        wait_until(
            lambda: of(read(client.metrics().text), "messages_refused_total", code="unknown_version") == 1,
            "the other version is counted",
        )
    assert of(read(client.metrics().text), "messages_refused_total", code="malformed") == 3


def test_model_that_was_unloaded_has_no_series_left(daemon: RunningDaemon, client: Client):
    list(client.generate(ask("abc")))
    client.unload("bytes")

    values = read(client.metrics().text)

    assert [labels for _, labels in values if ("model", "bytes") in labels] == []


def test_http_serves_the_same_families(daemon: RunningDaemon, client: Client):
    list(client.generate(ask("abc")))

    page = scrape(daemon)
    text = page.read().decode()

    assert (page.status, page.headers["Content-Type"]) == (
        200,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )
    assert set(read(text)) == set(read(client.metrics().text))
    assert of(read(text), "requests_total", model="bytes", kind="generate", outcome="length") == 1


def test_http_serves_nothing_else(daemon: RunningDaemon):
    assert scrape(daemon, path="/").status == 404
    assert scrape(daemon, method="POST").status == 405


def test_no_label_and_no_value_holds_a_word_of_a_prompt(daemon: RunningDaemon, client: Client):
    list(client.generate(ask("mellifluous")))
    with pytest.raises(TeengineError):
        list(client.generate(Generate(model="mellifluous", prompt="mellifluous", client_id="mellifluous")))

    assert "mellifluous" not in client.metrics().text


def test_command_prints_the_exposition_or_its_values(daemon: RunningDaemon):
    command = [sys.executable, "-m", "teengined.cli.main", "--endpoint", daemon.endpoint, "metrics"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    told = json.loads(subprocess.run([*command, "-o", "json"], capture_output=True, check=True, timeout=60).stdout)

    assert told["schema"] == "teengine.metrics/v1"
    assert {family["name"] for family in told["items"]} == {
        family.name for family in text_string_to_metric_families(text)
    }


@pytest.mark.parametrize(
    ("listen", "told"),
    [("0.0.0.0:9464", "can be reached from other hosts"), ("nowhere:1", "is no address"), ("[::1]:x", "with a port")],
)
def test_daemon_does_not_start_where_metrics_would_be_open_to_others(daemon: RunningDaemon, listen: str, told: str):
    other = daemon.directory / "other.log"
    daemon.config_file.write_text(daemon.config_file.read_text().replace("127.0.0.1:0", listen))

    refused = daemon.start(log_file=other)

    assert refused.wait(timeout=20) == 78
    assert re.search(f"metrics.listen: .*{told}", other.read_text())
    assert "Traceback" not in other.read_text()


def test_daemon_does_not_start_where_the_port_is_taken(daemon: RunningDaemon):
    found = re.search(r"metrics on http://(127\.0\.0\.1:\d+)", daemon.log())
    assert found is not None
    other = daemon.directory / "other.log"
    daemon.config_file.write_text(daemon.config_file.read_text().replace("127.0.0.1:0", found[1]))
    daemon.runtime_dir = daemon.directory / "elsewhere"

    refused = daemon.start(log_file=other)

    assert refused.wait(timeout=20) == 78
    assert "metrics.listen: cannot listen on 127.0.0.1" in other.read_text()
    assert "Traceback" not in other.read_text()
    assert daemon.process.poll() is None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=20) == 0
