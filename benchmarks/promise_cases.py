"""The cases of `benchmarks.promises` that compare two ways of serving the same prompts."""

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.memory_limit import run_limited
from benchmarks.private_daemon import PrivateDaemon
from benchmarks.serving_models import ModelFiles, model_files
from benchmarks.streams import Stamps, figures_of, percentile, read_stream, read_streams
from teengined.client.asynchronous import AsyncClient
from teengined.core.device import DeviceSpec
from teengined.core.model import ModelManifest, UnitKind
from teengined.core.sampling import SamplingParams
from teengined.modelpack.manifest import read_manifest
from teengined.protocol.messages import Generate, LoadModel, PlanModel

__all__ = [
    "Promise",
    "measure_long_prompt",
    "measure_prefix",
    "measure_stages",
    "measure_streamed",
    "random_prompts",
    "streamed_figures",
]

_DEVICE_BYTES = 12 << 30
_MODEL = "random-1b"
# Interpreter, torch, transformers: of the worker, and the daemon and the client beside it.
_LIBRARIES_BYTES = 1200 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One figure and its target."""

    case: str
    what: str
    reached: float
    target: float
    at_least: bool
    details: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def kept(self) -> bool:
        """Whether the target is reached."""
        return self.reached >= self.target if self.at_least else self.reached <= self.target

    def mapping(self) -> dict[str, Any]:
        """Return it by name."""
        return {**asdict(self), "kept": self.kept}


def random_prompts(vocab_size: int, num_prompts: int, num_tokens: int, seed: int = 3) -> list[tuple[int, ...]]:
    """Return prompts of random ids, the same for one seed."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(vocab_size) for _ in range(num_tokens)) for _ in range(num_prompts)]


def measure_streamed(directory: Path) -> Sequence[Promise]:
    """Compare 16 streams with one, every weight read for each step."""
    files = model_files(_MODEL, directory)
    package = files.package_name("int8")
    command = [sys.executable, "-m", "benchmarks.promise_streamed", str(directory), package]
    figures = run_limited(command, _streamed_limit(files, package))
    ratio = figures["tokens_per_s_16"] / figures["tokens_per_s_1"]
    details = {name: figures[name] for name in ("tokens_per_s_1", "tokens_per_s_16")}
    return [
        Promise(
            case="streamed",
            what="tokens/s of 16 streams / of one",
            reached=ratio,
            target=8.0,
            at_least=True,
            details=details,
        )
    ]


def _streamed_limit(files: ModelFiles, package: str) -> int:
    """Return a memory limit that holds the ring, the KV and the libraries, and not a third of the weights."""
    manifest = read_manifest(files.store / package)
    return _LIBRARIES_BYTES + sum(unit.size_bytes for unit in manifest.units) // 3


def streamed_figures(directory: Path, package: str) -> Mapping[str, float]:
    """Return tokens/s of one stream and of 16 with nothing resident; run inside the limit."""
    settings = '[streaming]\ndirect_io = "always"\n[batching]\nprefix_cache = false'
    with PrivateDaemon(directory / "state", directory / "models", [_whole_machine()], settings) as daemon:
        plan = PlanModel(model=package, context_tokens=96, num_slots=16, resident_fraction=0.0)
        daemon.client.load(LoadModel(plan=plan, verify=False))
        prompts = random_prompts(1 << 15, 16, 16)
        read_streams(daemon.endpoint, package, prompts, 2)
        one = figures_of(read_streams(daemon.endpoint, package, prompts[:1], 16))
        many = figures_of(read_streams(daemon.endpoint, package, prompts, 24))
    return {"tokens_per_s_1": one.tokens_per_s, "tokens_per_s_16": many.tokens_per_s}


def measure_stages(directory: Path) -> Sequence[Promise]:
    """Compare two stages of half the weights on a core each with one stage on both cores; rounds in turns."""
    files = model_files(_MODEL, directory)
    package = files.package_name("int8")
    manifest = read_manifest(files.store / package)
    num_first = _even_split(manifest)
    cores = sorted(os.sched_getaffinity(0))[:2]
    whole = [_device(0, cores)]
    halves = [_device(index, [core]) for index, core in enumerate(cores)]
    assignment = {"cpu:0": num_first, "cpu:1": manifest.num_layers - num_first}
    rates: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(3):
        rates["one"].append(_eight_streams(directory, package, whole, None))
        rates["two"].append(_eight_streams(directory, package, halves, assignment))
    one, two = (percentile(rates[name], 0.5) for name in ("one", "two"))
    return [
        Promise(
            case="stages",
            what="tokens/s of 8 streams, two stages / one",
            reached=two / one,
            target=0.85,
            at_least=True,
            details={"one stage": one, "two stages": two},
        )
    ]


def _even_split(manifest: ModelManifest) -> int:
    """Return how many layers, before the others and the head, are nearest to half of what a step reads."""
    sizes = [0] * manifest.num_layers
    for unit in manifest.units:
        if unit.layer is not None:
            sizes[unit.layer] += unit.size_bytes
    head_bytes = sum(unit.size_bytes for unit in manifest.units if unit.kind is UnitKind.HEAD)
    half_bytes = (sum(sizes) + head_bytes) / 2
    return min(range(1, manifest.num_layers), key=lambda count: abs(sum(sizes[:count]) - half_bytes))


def _eight_streams(
    directory: Path, package: str, devices: Sequence[DeviceSpec], assignment: Mapping[str, int] | None
) -> float:
    with PrivateDaemon(directory / "state", directory / "models", devices) as daemon:
        plan = PlanModel(model=package, context_tokens=160, num_slots=8, assignment=assignment)
        daemon.client.load(LoadModel(plan=plan, verify=False))
        prompts = random_prompts(1 << 15, 8, 32)
        read_streams(daemon.endpoint, package, prompts, 4)
        return figures_of(read_streams(daemon.endpoint, package, prompts, 64)).tokens_per_s


def measure_prefix(directory: Path) -> Sequence[Promise]:
    """Compare times to the first token of two prompts that begin with the same 512 tokens."""
    files = model_files(_MODEL, directory)
    package = files.package_name("int8")
    with PrivateDaemon(directory / "state", files.store, [_whole_machine()]) as daemon:
        daemon.client.load(LoadModel(plan=PlanModel(model=package, context_tokens=1024, num_slots=4), verify=False))
        read_streams(daemon.endpoint, package, random_prompts(files.vocab_size, 1, 528), 2)
        ratios: list[tuple[float, float]] = []
        for seed in range(11, 14):
            (shared,) = random_prompts(files.vocab_size, 1, 512, seed)
            tails = random_prompts(files.vocab_size, 2, 8, seed + 100)
            times = [read_streams(daemon.endpoint, package, [shared + tail], 2)[0][0] for tail in tails]
            ratios.append((times[0], times[1]))
    first, second = (percentile([pair[place] for pair in ratios], 0.5) for place in (0, 1))
    return [
        Promise(
            case="prefix",
            what="second time to first token / first",
            reached=second / first,
            target=0.25,
            at_least=False,
            details={"first s": first, "second s": second},
        )
    ]


def measure_long_prompt(directory: Path) -> Sequence[Promise]:
    """Compare the gaps of 8 streams with and without a prompt of 4,000 tokens beside them."""
    files = model_files(_MODEL, directory)
    package = files.package_name("int8")
    with PrivateDaemon(directory / "state", files.store, [_whole_machine()]) as daemon:
        daemon.client.load(LoadModel(plan=PlanModel(model=package, context_tokens=4096, num_slots=9), verify=False))
        prompts = random_prompts(files.vocab_size, 8, 16)
        (long_prompt,) = random_prompts(files.vocab_size, 1, 4000)
        read_streams(daemon.endpoint, package, prompts, 8)
        read_streams(daemon.endpoint, package, [long_prompt[:600]], 2)
        calm = figures_of(read_streams(daemon.endpoint, package, prompts, 96))
        disturbed, seconds = asyncio.run(_beside(daemon.endpoint, package, prompts, long_prompt))
    gaps = [later - earlier for times in disturbed for earlier, later in itertools.pairwise(times)]
    p99_ms = percentile(gaps, 0.99) * 1e3
    return [
        Promise(
            case="long-prompt",
            what="p99 gap beside a 4,000-token prompt / undisturbed",
            reached=p99_ms / calm.itl_p99_ms,
            target=3.0,
            at_least=False,
            details={"undisturbed ms": calm.itl_p99_ms, "disturbed ms": p99_ms, "prefill s": seconds},
        )
    ]


async def _beside(
    endpoint: str, model: str, prompts: Sequence[tuple[int, ...]], long_prompt: tuple[int, ...]
) -> tuple[Stamps, float]:
    """Return the stamps of the streams while the long prompt was computed, and how long that took."""
    async with AsyncClient(endpoint) as client:
        endless = SamplingParams(max_tokens=2048, ignore_eos=True)
        start = time.perf_counter()
        streams = [
            asyncio.create_task(
                _until_cancelled(client, Generate(model=model, token_ids=prompt, sampling=endless), start)
            )
            for prompt in prompts
        ]
        await asyncio.sleep(2.0)
        begin = time.perf_counter() - start
        short = SamplingParams(max_tokens=2, ignore_eos=True)
        stamps = await read_stream(client, Generate(model=model, token_ids=long_prompt, sampling=short), start)
        end = stamps[0]
        for stream in streams:
            stream.cancel()
        all_stamps = await asyncio.gather(*streams)
    return [[moment for moment in times if begin < moment <= end] for times in all_stamps], end - begin


async def _until_cancelled(client: AsyncClient, request: Generate, start: float) -> list[float]:
    stamps: list[float] = []
    try:
        async for event in client.generate(request):
            num_tokens = len(getattr(event, "token_ids", ()))
            stamps += [time.perf_counter() - start] * num_tokens
    except asyncio.CancelledError:
        return stamps
    return stamps


def _whole_machine() -> DeviceSpec:
    return _device(0, sorted(os.sched_getaffinity(0)))


def _device(index: int, cores: Sequence[int]) -> DeviceSpec:
    return DeviceSpec(
        id=f"cpu:{index}", driver="cpu", memory_bytes=_DEVICE_BYTES, threads=len(cores), cores=tuple(cores)
    )
