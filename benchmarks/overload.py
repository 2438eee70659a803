"""Requests come ten times faster than they can be served for a minute, then half as fast as they can.

Arrivals do not wait for answers (an open loop), so that a slow daemon cannot slow its load down. Refusals at once are
what is wanted of the surplus; what is accepted must be served, and nothing may linger once the storm is over.
"""

import asyncio
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.private_daemon import PrivateDaemon
from benchmarks.promise_cases import Promise, random_prompts
from benchmarks.serving_models import model_files
from benchmarks.streams import percentile
from teengined.client.asynchronous import AsyncClient
from teengined.core.device import DeviceSpec
from teengined.core.errors import TeengineError
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Generate, LoadModel, PlanModel, TokenChunk

__all__ = ["measure_overload"]

_MODEL = "smollm2"
_PROMPT_TOKENS, _NUM_TOKENS = 32, 16
_STORM_SECONDS, _CALM_SECONDS, _RECOVERY_SECONDS = 60.0, 30.0, 10.0
_PROBE_SECONDS = 10.0
_STORM_FACTOR, _CALM_FACTOR = 10.0, 0.5
# Clients of their own sockets, so that one socket's queue does not become the bottleneck.
_NUM_CLIENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """One request: when it came, and what became of it."""

    arrived: float
    first_token: float | None
    ended: float
    num_tokens: int
    refusal: str = ""


def measure_overload(directory: Path) -> Sequence[Promise]:
    """Measure the daemon's capacity, storm it, and watch it recover."""
    files = model_files(_MODEL, directory)
    package = files.package_name("int8")
    cores = tuple(sorted(os.sched_getaffinity(0)))
    device = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=4 << 30, threads=len(cores), cores=cores)
    settings = "[limits]\nmax_waiting = 64\n[batching]\nmax_running = 64\nprefix_cache = false"
    with PrivateDaemon(directory / "state", files.store, [device], settings) as daemon:
        daemon.client.load(LoadModel(plan=PlanModel(model=package, context_tokens=64, num_slots=64), verify=False))
        return asyncio.run(_storm(daemon, package, files.vocab_size))


async def _storm(daemon: PrivateDaemon, model: str, vocab_size: int) -> Sequence[Promise]:
    clients = [AsyncClient(daemon.endpoint) for _ in range(_NUM_CLIENTS)]
    pid = (await clients[0].status()).pid
    prompts = random_prompts(vocab_size, 256, _PROMPT_TOKENS)
    try:
        load = _Load(clients, model, prompts)
        await load.run(200.0, 3.0)  # kernels are chosen
        peak = _goodput(await load.run(1000.0, _PROBE_SECONDS))
        rate = peak / _NUM_TOKENS
        baseline = await load.run(_CALM_FACTOR * rate, _CALM_SECONDS / 2)
        memory_before = _memory_bytes(pid)
        storm = await load.run(_STORM_FACTOR * rate, _STORM_SECONDS)
        memory_after = _memory_bytes(pid)
        calm_from = time.perf_counter()
        calm = await load.run(_CALM_FACTOR * rate, _CALM_SECONDS)
    finally:
        for client in clients:
            await client.close()
    settled = [item for item in calm if item.arrived > calm_from + _RECOVERY_SECONDS]
    before, after = _p99_first_token(baseline), _p99_first_token(settled)
    refused = [item.ended - item.arrived for item in storm if item.refusal]
    details = {"peak tokens/s": peak, "arrivals": len(storm), "refused": len(refused)}
    return [
        _promise("goodput of the storm / peak", _goodput(storm) / peak, 0.9, at_least=True, **details),
        _promise(
            "p99 to first token 10 s after / before", after / before, 1.5, at_least=False, before=before, after=after
        ),
        _promise("p99 seconds to a refusal", percentile(refused or [0.0], 0.99), 0.05, at_least=False),
        _promise(
            "memory after / before", memory_after / memory_before, 1.2, at_least=False, before_bytes=memory_before
        ),
        _promise("failed otherwise", _num_failed([*storm, *calm]), 0, at_least=False),
    ]


def _promise(what: str, reached: float, target: float, *, at_least: bool, **details: float) -> Promise:
    return Promise(case="overload", what=what, reached=reached, target=target, at_least=at_least, details=details)


class _Load:
    """Sends requests at given rates."""

    def __init__(self, clients: Sequence[AsyncClient], model: str, prompts: Sequence[tuple[int, ...]]) -> None:
        self._clients, self._model, self._prompts = clients, model, prompts
        self._rng = random.Random(5)
        self._num_sent = 0

    async def run(self, per_second: float, seconds: float) -> list[_Outcome]:
        """Send for so long, at random moments, and wait for all to end."""
        tasks: list[asyncio.Task[_Outcome]] = []
        next_time = time.perf_counter()
        end = next_time + seconds
        while next_time < end:
            await asyncio.sleep(max(0.0, next_time - time.perf_counter()))
            tasks.append(asyncio.create_task(self._one()))
            next_time += self._rng.expovariate(per_second)
        return await asyncio.gather(*tasks)

    async def _one(self) -> _Outcome:
        self._num_sent += 1
        client = self._clients[self._num_sent % len(self._clients)]
        sampling = SamplingParams(max_tokens=_NUM_TOKENS, ignore_eos=True)
        prompt = self._prompts[self._num_sent % len(self._prompts)]
        arrived, first, num_tokens, refusal = time.perf_counter(), None, 0, ""
        try:
            async for event in client.generate(Generate(model=self._model, token_ids=prompt, sampling=sampling)):
                if isinstance(event, TokenChunk):
                    first = first or time.perf_counter()
                    num_tokens += len(event.token_ids)
        except TeengineError as error:
            refusal = error.code
        return _Outcome(
            arrived=arrived, first_token=first, ended=time.perf_counter(), num_tokens=num_tokens, refusal=refusal
        )


def _goodput(outcomes: Sequence[_Outcome]) -> float:
    """Return tokens/s of answers that were completed."""
    seconds = max(item.ended for item in outcomes) - min(item.arrived for item in outcomes)
    return sum(item.num_tokens for item in outcomes if not item.refusal) / seconds


def _p99_first_token(outcomes: Sequence[_Outcome]) -> float:
    return percentile([item.first_token - item.arrived for item in outcomes if item.first_token is not None], 0.99)


def _num_failed(outcomes: Sequence[_Outcome]) -> int:
    return sum(item.refusal not in ("", "queue_full", "quota_exceeded") for item in outcomes)


def _memory_bytes(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss
