"""The main job on the real model: SmolLM2 through a real daemon, larger than its device, gives transformers' tokens."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.private_daemon import PrivateDaemon
from benchmarks.smollm2 import PROMPTS, reference_tokens, smollm2_package
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.errors import SourceError
from teengined.core.plan import Plan
from teengined.core.sampling import SamplingParams
from teengined.modelpack.manifest import read_manifest
from teengined.protocol.messages import Generate, LoadModel, PlanModel, TokenChunk

pytestmark = [pytest.mark.system, pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(600)]

NUM_TOKENS = 24
NUM_PROMPTS = 4
BUDGET_SHARE = 0.45


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fp32 package and the GGUF file that it was converted from."""
    try:
        return smollm2_package(tmp_path_factory.mktemp("store"), "fp32")
    except SourceError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"SmolLM2 cannot be fetched here: {error.message}")


def answers(endpoint: str, model: str, prompts: list[list[int]]) -> list[list[int]]:
    """Ask for all answers at once, each as a client of its own."""

    def answer(prompt: list[int]) -> list[int]:
        sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
        with Client(endpoint) as client:
            events = client.generate(Generate(model=model, token_ids=tuple(prompt), sampling=sampling))
            return [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(answer, prompts))


def streams_on_two_devices(plan: Plan) -> bool:
    return len(plan.stages) == 2 and all(stage.streamed_bytes for stage in plan.stages)


def test_a_model_larger_than_its_devices_answers_as_transformers_does(
    package: tuple[Path, Path], tmp_path: Path
) -> None:
    package_dir, gguf_file = package
    prompts, reference = reference_tokens(gguf_file, PROMPTS[:NUM_PROMPTS], NUM_TOKENS)
    budget_bytes = int(read_manifest(package_dir).size_bytes * BUDGET_SHARE)
    devices = [DeviceSpec(id=f"cpu:{index}", driver="cpu", memory_bytes=budget_bytes) for index in range(2)]
    wish = PlanModel(
        model=package_dir.name,
        context_tokens=96,
        num_slots=NUM_PROMPTS,
        assignment={"cpu:0": 18, "cpu:1": 12},
        resident_fraction=0.5,
    )

    with PrivateDaemon(tmp_path / "state", package_dir.parent, devices) as daemon:
        deployment = daemon.client.load(LoadModel(plan=wish)).deployment
        ours = answers(daemon.endpoint, package_dir.name, prompts)

    assert streams_on_two_devices(deployment.plan)
    assert sum(device.memory_bytes for device in devices) < read_manifest(package_dir).size_bytes
    assert ours == reference
