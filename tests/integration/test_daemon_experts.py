"""A real daemon with a real worker and a mixture of experts that does not fit: answers, figures, what goes wrong."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.private_daemon import PrivateDaemon
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.errors import PackageCorrupt, WorkerLost
from teengined.core.model import ModelManifest
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Deployment, Generate, LoadModel, PlanModel, TokenChunk
from tests.fakes.converted import convert_directory
from tests.fakes.tiny_models import build_tiny_model
from tests.integration.test_daemon_disks import SETTINGS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NAME = "tiny"
# Of 64 MiB of experts and some megabytes of all else.
BUDGET_BYTES, ROOM_BYTES = 32 << 20, 256 << 20
PROMPTS = ((5, 6, 7), (9, 200, 31, 4), (88,))
MANY_SEQUENCES = SETTINGS.replace("num_slots = 1", "num_slots = 8")


@dataclass(frozen=True)
class Model:
    """A converted mixture of 4 layers of 64 experts, of which a token asks for 4."""

    store: Path
    manifest: ModelManifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("mixture")
    return convert(directory)


def convert(directory: Path) -> Model:
    wide: dict[str, Any] = {
        "num_experts": 64,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 352,
        "num_hidden_layers": 4,
    }
    source = build_tiny_model("qwen3_moe", directory / "source", seed=3, **wide)
    (directory / "store").mkdir()
    return Model(directory / "store", convert_directory(source, directory / "store"))


def open_daemon(store: Path, directory: Path, budget_bytes: int = BUDGET_BYTES) -> PrivateDaemon:
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=budget_bytes)
    return PrivateDaemon(directory / "state", store, [spec], MANY_SEQUENCES)


def load(client: Client, **plan: str) -> Deployment:
    return client.load(LoadModel(plan=PlanModel(model=NAME, **plan))).deployment  # type: ignore[arg-type]


def deployment(client: Client) -> Deployment:
    (found,) = client.deployments().deployments
    return found


def request(prompt: tuple[int, ...], num_tokens: int) -> Generate:
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=0.0)
    return Generate(model=NAME, token_ids=prompt, sampling=sampling)


def ask(client: Client, prompt: tuple[int, ...] = PROMPTS[0], num_tokens: int = 12) -> list[int]:
    events = client.generate(request(prompt, num_tokens))
    return [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]


@pytest.fixture(scope="module")
def daemon(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDaemon]:
    with open_daemon(model.store, tmp_path_factory.mktemp("daemon")) as running:
        load(running.client, numerics="strict")
        yield running


def test_experts_that_do_not_fit_are_cached_in_part(daemon: PrivateDaemon, model: Model) -> None:
    loaded = deployment(daemon.client)
    experts = loaded.plan.stages[0].experts
    all_bytes = sum(unit.size_bytes for unit in model.manifest.units if unit.expert is not None)

    assert experts is not None
    assert experts.num_bytes == all_bytes > BUDGET_BYTES
    assert 0 < experts.cache_bytes < all_bytes
    assert loaded.plan.stages[0].total_bytes <= BUDGET_BYTES


def test_strict_answers_are_those_of_the_model_with_all_experts_resident(
    daemon: PrivateDaemon, model: Model, tmp_path: Path
) -> None:
    streamed = [ask(daemon.client, prompt) for prompt in PROMPTS * 3]
    with open_daemon(model.store, tmp_path, ROOM_BYTES) as other:
        assert load(other.client, numerics="strict").plan.stages[0].experts is None
        resident = [ask(other.client, prompt) for prompt in PROMPTS]

    assert streamed == resident * 3


def test_figures_of_the_cache_follow_the_answers(daemon: PrivateDaemon) -> None:
    for _ in range(3):
        ask(daemon.client)
    experts = deployment(daemon.client).experts
    text = daemon.client.metrics()

    assert experts is not None
    assert experts.num_experts == 4 * 64
    assert 0 < experts.num_slots < experts.num_experts
    assert 0 < experts.hit_rate <= experts.best_hit_rate < 1
    assert experts.hit_rate == pytest.approx(experts.simulated_hit_rate, abs=0.05)  # The policy may have changed.
    assert experts.policies[0] in ("lfu", "lru", "pinned", "sticky")
    assert experts.bytes_per_token > 0
    told = {family.name: family.series for family in text.families}
    assert told["teengine_expert_hit_ratio"][0].value == pytest.approx(experts.hit_rate, abs=0.05)


def test_a_killed_worker_fails_its_answer_and_comes_back_to_the_same_tokens(daemon: PrivateDaemon) -> None:
    expected = ask(daemon.client)
    (device,) = daemon.client.status().devices
    assert device.worker_pid is not None
    events = daemon.client.generate(request(PROMPTS[0], 50))
    next(events)

    os.kill(device.worker_pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL"):
        list(events)

    assert ask(daemon.client) == expected


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[PrivateDaemon]:
    """Yield a daemon with the model, of which every sixteenth expert of a layer is damaged where it is stored."""
    model = convert(tmp_path)
    for unit in model.manifest.units:
        if unit.layer == 2 and unit.expert is not None and unit.expert % 16 == 0:
            with (model.store / NAME / unit.file).open("r+b") as file:
                file.seek(unit.offset_bytes + 100)
                file.write(b"\xff\x00\xff\x00")
    with open_daemon(model.store, tmp_path) as running:
        load(running.client, numerics="strict")
        yield running


def outcome(client: Client, prompt: tuple[int, ...], num_tokens: int) -> list[int] | str:
    """Return what is answered, or how it failed."""
    try:
        return ask(client, prompt, num_tokens)
    except PackageCorrupt as error:
        return error.message


def test_a_damaged_expert_fails_who_asks_for_it_and_marks_the_model(
    damaged: PrivateDaemon, daemon: PrivateDaemon
) -> None:
    client, pid = damaged.client, damaged.client.status().devices[0].worker_pid
    outcomes = {token: outcome(client, (token,), 2) for token in range(3, 40)}
    failed = [told for told in outcomes.values() if isinstance(told, str)]

    assert 0 < len(failed) < len(outcomes)
    assert all(re.search(r"unit layer\.2\.expert\.\d+.*differs from its digest", told) for told in failed)
    for token, told in outcomes.items():
        assert isinstance(told, str) or told == ask(daemon.client, (token,), 2)
    marked = deployment(client)
    assert (marked.state, "unit layer.2.expert." in marked.problem) == ("ready", True)
    assert client.status().devices[0].worker_pid == pid


def test_a_damaged_expert_fails_nobody_who_runs_beside(damaged: PrivateDaemon, daemon: PrivateDaemon) -> None:
    prompts = [(token,) for token in range(3, 40)]
    expected = [outcome(damaged.client, prompt, 6) for prompt in prompts]

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: asked_alone(damaged.endpoint, prompt), prompts))

    assert [isinstance(told, str) for told in together] == [isinstance(told, str) for told in expected]
    assert [told for told in together if not isinstance(told, str)] == [
        told for told in expected if not isinstance(told, str)
    ]
    assert any(isinstance(told, str) for told in together)


def asked_alone(endpoint: str, prompt: tuple[int, ...]) -> list[int] | str:
    with Client(endpoint, timeout_seconds=120.0) as client:
        return outcome(client, prompt, 6)
