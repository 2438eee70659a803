"""How soon a preempted sequence goes on: computed again, copied back from host memory, or read back from disk.

    python -m benchmarks.spool [--json] [--tokens N …] [--rounds R] [--directory DIR]

A random Llama, all resident, one sequence of N tokens on one device. In each round its blocks are taken in each of the
three ways, one after the other, and the time to its next token is measured. What the scheduler learns meanwhile is what
it would choose by: the table shows its choice for each tier, and whether the measured times agree.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.local_pipeline import LocalPipeline, PipelineOptions
from benchmarks.random_llama import RandomLlama, write_random_llama
from benchmarks.scheduled_pipeline import ScheduledPipeline
from benchmarks.table import print_json, print_table
from benchmarks.unmeasured import single_device_plan
from teengined.core.device import DeviceSpec
from teengined.core.plan import Tier
from teengined.core.sampling import SamplingParams
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from teengined.scheduler.limits import SchedulerLimits, SpoolLimits
from teengined.scheduler.restore_costs import RestoreCosts, Speeds

__all__ = ["main"]

_SIZES = RandomLlama(
    num_hidden_layers=12,
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=8192,
)
_BLOCK_TOKENS = 16
_STEP_TOKENS = 512
_WAYS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
_NAMES = {Tier.DEVICE: "compute", Tier.HOST: "host", Tier.DISK: "disk"}
# Nothing is decoded while it is measured, so two tokens are enough: one before, one after.
_ANSWER_TOKENS = 2


class _Willing(RestoreCosts):
    """Learns as the scheduler does, and restores whatever can be."""

    def is_worthwhile(self, tier: Tier) -> bool:
        return True

    def num_restored(self, tiers: Sequence[Tier], num_left: int, num_after: int, num_before: int = 0) -> int:
        return len(tiers)


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds to the next token after each way, and what was expected of each before."""

    seconds: Mapping[Tier, float]
    expected: Mapping[Tier, float]
    chosen: Mapping[Tier, bool]
    """Whether the scheduler would have restored from the tier."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every length and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=str(Path(tempfile.gettempdir()) / "teengine-benchmarks"))
    options = parser.parse_args(arguments)
    package_dir = _package(Path(options.directory))
    costs = _Willing(expected=Speeds(), block_tokens=_BLOCK_TOKENS, max_step_tokens=_STEP_TOKENS)
    rounds: dict[int, list[Round]] = {count: [] for count in options.tokens}
    with _opened(package_dir, max(options.tokens), Path(options.directory)) as pipeline:
        for number in range(options.rounds + 1):
            for count in options.tokens:
                measured = _round(pipeline, costs, count)
                if number:  # The first one warms up and teaches.
                    rounds[count].append(measured)
    cases = [_case(count, each) for count, each in rounds.items()]
    _print(cases)
    if options.json:
        block_bytes = _block_bytes(package_dir)
        print_json({"cases": cases, "block_bytes": block_bytes, "block_tokens": _BLOCK_TOKENS})


def _package(directory: Path) -> Path:
    model_dir, store = directory / "random-spool", directory / "models"
    name = "random-spool-bf16"
    if not (store / name).is_dir():
        print("making a random Llama …", file=sys.stderr, flush=True)
        write_random_llama(_SIZES, model_dir)
        command = ["convert", str(model_dir), "--store", str(store), "--name", name, "--precision", "bf16"]
        subprocess.run([sys.executable, "-m", "teengined.modelpack", *command], check=True, stdout=subprocess.DEVNULL)
    return store / name


def _block_bytes(package_dir: Path) -> int:
    manifest = read_manifest(package_dir)
    return sum(manifest.kv_elements_per_token) * _BLOCK_TOKENS * 2


def _num_blocks(num_tokens: int) -> int:
    return math.ceil((num_tokens + _ANSWER_TOKENS) / _BLOCK_TOKENS) + 2


@contextmanager
def _opened(package_dir: Path, num_tokens: int, directory: Path) -> Generator[LocalPipeline]:
    manifest = read_manifest(package_dir)
    threads = psutil.cpu_count(logical=False) or 1
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=4 << 30, threads=threads)
    plan = single_device_plan(manifest, spec, 1.0, num_tokens + _ANSWER_TOKENS)
    with tempfile.TemporaryDirectory(dir=directory) as spool_dir:
        options = PipelineOptions(
            max_step_tokens=_STEP_TOKENS,
            num_blocks=_num_blocks(num_tokens),
            num_host_slots=2 * _num_blocks(num_tokens),
            num_disk_slots=2 * _num_blocks(num_tokens),
            spool_dir=spool_dir,
        )
        with LocalPipeline(package_dir, plan, [spec], PluginRegistry.load(), options) as pipeline:
            yield pipeline


def _scheduled(pipeline: LocalPipeline, costs: RestoreCosts, num_tokens: int, way: Tier) -> ScheduledPipeline:
    num_blocks = _num_blocks(num_tokens)
    spool = SpoolLimits(
        num_host_slots=0 if way is Tier.DEVICE else 2 * num_blocks,
        num_disk_slots=2 * num_blocks if way is Tier.DISK else 0,
        max_restored_blocks=num_blocks,
    )
    limits = SchedulerLimits(
        max_running=1,
        max_waiting=1,
        max_waiting_tokens=num_tokens + _ANSWER_TOKENS,
        max_owner_waiting=1,
        max_owner_waiting_tokens=num_tokens + _ANSWER_TOKENS,
        max_step_tokens=_STEP_TOKENS,
        max_logit_rows=1,
        num_blocks=num_blocks,
        block_tokens=_BLOCK_TOKENS,
        spool=spool,
    )
    scheduled = ScheduledPipeline(pipeline, limits)
    scheduled.use_costs(costs)
    return scheduled


def _round(pipeline: LocalPipeline, costs: _Willing, num_tokens: int) -> Round:
    seconds: dict[Tier, float] = {}
    num_blocks = math.ceil(num_tokens / _BLOCK_TOKENS)
    speeds = costs.speeds
    expected = {
        way: costs.compute_seconds(num_tokens + 1)
        if way is Tier.DEVICE
        else num_blocks * speeds.block_seconds(way) + costs.compute_seconds(1, num_tokens)
        for way in _WAYS
    }
    chosen = {
        way: RestoreCosts.num_restored(costs, [way] * num_blocks, num_tokens + 1, 1) > 0
        for way in (Tier.HOST, Tier.DISK)
    }
    for way in _WAYS:
        seconds[way] = _resume_seconds(_scheduled(pipeline, costs, num_tokens, way), num_tokens, way)
    return Round(seconds, expected, chosen)


def _resume_seconds(scheduled: ScheduledPipeline, num_tokens: int, way: Tier) -> float:
    sampling = SamplingParams(max_tokens=_ANSWER_TOKENS, ignore_eos=True)
    prompt = tuple(3 + (7 * position) % 251 for position in range(num_tokens))
    sequence_id = scheduled.submit(prompt, sampling)
    scheduled.run_until_emitted(sequence_id, 1)
    scheduled.take_blocks(sequence_id, to_disk=way is Tier.DISK)
    start = time.perf_counter()
    scheduled.finish(sequence_id)
    seconds = time.perf_counter() - start
    if (scheduled.scheduler.tiers.num_restored > 0) != (way is not Tier.DEVICE):
        raise RuntimeError(f"the sequence did not come back by way of {_NAMES[way]}")
    return seconds


def _case(num_tokens: int, rounds: Sequence[Round]) -> dict[str, Any]:
    seconds = {way: statistics.median(each.seconds[way] for each in rounds) for way in _WAYS}
    expected = {way: statistics.median(each.expected[way] for each in rounds) for way in _WAYS}
    restores = {tier: rounds[-1].chosen[tier] for tier in (Tier.HOST, Tier.DISK)}
    pays = {tier: seconds[tier] < seconds[Tier.DEVICE] for tier in restores}
    return {
        "tokens": num_tokens,
        **{f"{_NAMES[way]}_seconds": seconds[way] for way in _WAYS},
        **{f"expected_{_NAMES[way]}_seconds": expected[way] for way in _WAYS},
        **{f"restores_from_{_NAMES[tier]}": restores[tier] for tier in restores},
        **{f"right_about_{_NAMES[tier]}": restores[tier] == pays[tier] for tier in restores},
    }


def _print(cases: Sequence[Mapping[str, Any]]) -> None:
    def choice(case: Mapping[str, Any], name: str) -> str:
        chosen = "restore" if case[f"restores_from_{name}"] else "compute"
        return chosen if case[f"right_about_{name}"] else f"{chosen} (WRONG)"

    rows = [
        [
            str(case["tokens"]),
            *(
                f"{case[f'{name}_seconds'] * 1e3:.1f} ({case[f'expected_{name}_seconds'] * 1e3:.1f})"
                for name in _NAMES.values()
            ),
            choice(case, "host"),
            choice(case, "disk"),
        ]
        for case in cases
    ]
    headers = ["TOKENS", "COMPUTE ms (EXPECTED)", "HOST ms", "DISK ms", "FROM HOST", "FROM DISK"]
    print_table(headers, rows)


if __name__ == "__main__":
    main()
