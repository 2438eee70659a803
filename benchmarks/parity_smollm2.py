"""Parity of SmolLM2 through a private daemon: real processes, real sockets, five placements."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parity_row import ParityRow, compare
from benchmarks.private_daemon import PrivateDaemon
from benchmarks.smollm2 import PROMPTS, reference_tokens, smollm2_package
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Generate, LoadModel, PlanModel, TokenChunk

__all__ = ["smollm2_rows"]

_NUM_TOKENS = 64
_CONTEXT_TOKENS = 256
# Past the page cache, so that what counts as streamed was read from the disk.
_SETTINGS = '[streaming]\ndirect_io = "always"\n'


@dataclass(frozen=True, slots=True)
class Placement:
    """A name for the table and what the plan is told: share resident and layers of each device."""

    name: str
    resident: float
    assignment: Mapping[str, int]


_PLACEMENTS = (
    Placement("all resident", 1.0, {"cpu:0": 30}),
    Placement("half streamed", 0.5, {"cpu:0": 30}),
    Placement("all streamed", 0.0, {"cpu:0": 30}),
    Placement("two stages", 1.0, {"cpu:0": 15, "cpu:1": 15}),
    Placement("three stages, one layer on each of the last two", 1.0, {"cpu:0": 28, "cpu:1": 1, "cpu:2": 1}),
)


def smollm2_rows(scratch: Path) -> Iterator[ParityRow]:
    """Yield one row for each placement."""
    package_dir, gguf_file = smollm2_package(scratch / "store", "fp32")
    prompts, reference = reference_tokens(gguf_file, PROMPTS, _NUM_TOKENS)
    devices = [DeviceSpec(id=f"cpu:{index}", driver="cpu", memory_bytes=2 << 30, threads=1) for index in range(3)]
    with PrivateDaemon(scratch / "state", package_dir.parent, devices, _SETTINGS) as daemon:
        for placement in _PLACEMENTS:
            daemon.client.load(LoadModel(plan=_plan(package_dir.name, placement, len(prompts))))
            ours = _answers(daemon.endpoint, package_dir.name, prompts)
            daemon.client.unload(package_dir.name)
            yield compare("SmolLM2-135M fp32", placement.name, ours, reference)


def _plan(model: str, placement: Placement, num_slots: int) -> PlanModel:
    return PlanModel(
        model=model,
        context_tokens=_CONTEXT_TOKENS,
        num_slots=num_slots,
        resident_fraction=placement.resident,
        assignment=placement.assignment,
    )


def _answers(endpoint: str, model: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Ask for all answers at once, as so many clients would."""

    def answer(prompt: Sequence[int]) -> list[int]:
        sampling = SamplingParams(max_tokens=_NUM_TOKENS, ignore_eos=True)
        with Client(endpoint) as client:
            events = client.generate(Generate(model=model, token_ids=tuple(prompt), sampling=sampling))
            return [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(answer, prompts))
