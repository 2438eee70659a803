"""One case of the streaming benchmark in a process of its own: load at a resident share, decode, print figures.

Prints one JSON object. Run by `benchmarks.streaming` inside a memory limit.
"""

import json
import resource
import statistics
import sys
from pathlib import Path

import psutil

from benchmarks.local_pipeline import LocalPipeline
from benchmarks.unmeasured import single_device_plan
from teengined.core.device import DeviceSpec
from teengined.core.plan import Plan
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from teengined.models.skeleton import build_skeleton

__all__ = ["main", "plan_case"]

_CONTEXT_TOKENS = 256
_PROMPT = tuple(range(1, 17))
# The first steps fill the ring and warm kernels up.
_NUM_WARM_STEPS = 3


def plan_case(package_dir: Path, resident: float) -> tuple[DeviceSpec, Plan]:
    """Return the one device and the plan that keeps at most the share `resident` of the package on it."""
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1 << 40, threads=psutil.cpu_count() or 1)
    return spec, single_device_plan(read_manifest(package_dir), spec, resident, _CONTEXT_TOKENS)


def main() -> None:
    """Read the arguments `PACKAGE RESIDENT NUM_TOKENS` and print the figures."""
    package_dir, num_tokens = Path(sys.argv[1]), int(sys.argv[3])
    registry = PluginRegistry.load()
    spec, plan = plan_case(package_dir, float(sys.argv[2]))
    assert build_skeleton, "imported, so that the baseline holds the libraries"
    baseline_bytes = psutil.Process().memory_info().rss
    with LocalPipeline(package_dir, plan, [spec], registry) as pipeline:
        pipeline.generate([_PROMPT], num_tokens)
        seconds = pipeline.step_seconds[_NUM_WARM_STEPS:]
        streamed = [step.streamed_bytes for step in pipeline.last_steps][_NUM_WARM_STEPS:]
        stalls = [step.stall_seconds for step in pipeline.last_steps][_NUM_WARM_STEPS:]
    result = {
        "seconds_per_token": statistics.median(seconds),
        "streamed_bytes_per_token": statistics.median(streamed),
        "stall_seconds_per_token": statistics.median(stalls),
        "resident_bytes": plan.stages[0].resident_bytes,
        "budget_bytes": plan.stages[0].total_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline_bytes,
        "baseline_bytes": baseline_bytes,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
