"""One case of the out-of-core benchmark with our engine, in a process of its own. Prints one JSON object.

Run by `benchmarks.outofcore` inside a memory limit, with the order that the other engines get too
(`benchmarks/peers/streamed.py` says what is in it), and `package_dir`. Prints what they print.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.local_pipeline import LocalPipeline
from benchmarks.peers.streamed import answer, asked, decode
from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.core.errors import TeengineError
from teengined.core.plan import Plan, Stage
from teengined.core.sampling import SamplingParams
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from teengined.models.skeleton import build_skeleton
from teengined.protocol.worker_messages import SequenceOpen, SequencePart

__all__ = ["main"]

_CONTEXT_TOKENS = 256
# Of the limit, left for what no plan counts: thread stacks, what libraries take on their first call, the page cache of
# the small files of a package.
_HEADROOM_BYTES = 48 << 20


def main() -> None:
    """Run the case; where it cannot be run, the reason is the last line on standard error."""
    try:
        _run(asked())
    except TeengineError as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(1) from None


def _run(order: Mapping[str, Any]) -> None:
    package_dir = Path(order["package_dir"])
    registry = PluginRegistry.load()
    assert build_skeleton, "imported, so that the process is as large as it gets without a model"
    # Pages of libraries are whoever's first mapped them, and can be dropped: what is private is what the limit loses.
    held_bytes = psutil.Process().memory_full_info().uss
    free_bytes = order["limit_bytes"] - held_bytes - _HEADROOM_BYTES
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=max(1, free_bytes), threads=order["num_threads"])
    plan = _plan(package_dir, spec)
    with LocalPipeline(package_dir, plan, [spec], registry) as pipeline:
        stamps = decode(order, _Stepper(pipeline, len(order["prompt"])).step)
    answer(stamps, note=_note(plan.stages[0]))


def _plan(package_dir: Path, spec: DeviceSpec) -> Plan:
    manifest = read_manifest(package_dir)
    layers = ((spec, manifest.num_layers),)
    return plan_without_measuring(manifest, layers, resident_fraction=None, context_tokens=_CONTEXT_TOKENS)


def _note(stage: Stage) -> str:
    kept = f"{stage.resident_bytes / 1e9:.2f} GB of weights kept"
    if stage.experts is None:
        return kept
    slots, of = (
        sum(cache.num_slots for cache in stage.experts.caches),
        sum(cache.num_experts for cache in stage.experts.caches),
    )
    return f"{kept}, {slots} of {of} experts cached"


class _Stepper:
    """One sequence, whose tokens are given."""

    def __init__(self, pipeline: LocalPipeline, num_prompt_tokens: int) -> None:
        self._pipeline, self._position = pipeline, 0
        sampling = SamplingParams(max_tokens=_CONTEXT_TOKENS - num_prompt_tokens, ignore_eos=True)
        self._opened = SequenceOpen(sequence_id=0, num_prompt_tokens=num_prompt_tokens, sampling=sampling)

    def step(self, token_ids: Sequence[int]) -> None:
        part = SequencePart(
            sequence_id=0,
            token_ids=tuple(token_ids),
            start_position=self._position,
            new_blocks=() if self._position else self._pipeline.blocks_of(0),
            sample=True,
        )
        self._pipeline.run((part,), opened=() if self._position else (self._opened,))
        self._position += len(token_ids)


if __name__ == "__main__":
    main()
