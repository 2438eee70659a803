"""Streams a package larger than a memory limit that the kernel enforces, and measures what that took."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_limit import MemoryGroup, run_limited
from teengined.core.errors import CapacityError, NotAllowed

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# Torch and the interpreter; the child tells what it had before it opened anything.
LIBRARIES_BYTES = 500 * MIB

STREAMER = """
import json, resource, sys
from pathlib import Path
import torch
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import build_package, stage_of
from tests.fakes.separate_device import cpu_device

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
package = build_package(Path(sys.argv[1]), num_layers=20, rows=8000)
device = cpu_device()
before = peak()
weights = StageWeights(package_dir=package.directory, manifest=package.manifest,
    stage=stage_of(package, streamed=("*",)), device=device, options=StreamOptions(timeout_seconds=30))
weights.open()
for _ in range(2):
    for group in weights.groups:
        weights.acquire(group.index)
        weights.release(group.index)
print(json.dumps({"grown": peak() - before, "allocated": device.memory_info().allocated_bytes,
    "package": package.manifest.size_bytes, "streamed": weights.statistics.streamed_bytes}))
weights.close()
"""


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "drivers", ROOT / "plugins"))))


def require_groups():
    try:
        with MemoryGroup(64 * MIB):
            pass
    except NotAllowed as refusal:
        pytest.skip(f"{refusal.message}")


def test_streaming_takes_the_ring_and_nothing_near_the_package(tmp_path, environment):
    figures = run_limited([sys.executable, "-c", STREAMER, str(tmp_path)], LIBRARIES_BYTES)

    assert figures["streamed"] >= 2 * figures["package"] - figures["allocated"]
    assert figures["grown"] <= figures["allocated"] + 16 * MIB
    assert figures["allocated"] < figures["package"] / 4


def test_a_program_over_the_limit_is_killed_and_told(environment):
    require_groups()

    with pytest.raises(CapacityError, match="memory limit"):
        run_limited([sys.executable, "-c", "bytearray(200 << 20)"], 50 * MIB)


def test_a_program_that_fails_is_told_with_its_status():
    with pytest.raises(CapacityError, match="status 3"):
        run_limited([sys.executable, "-c", "raise SystemExit(3)"], 200 * MIB)


def test_the_group_is_gone_with_everything_in_it():
    require_groups()
    with MemoryGroup(64 * MIB) as group:
        command = group.command(["sh", "-c", "echo in; exec sleep 60"])
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        path = group._path

    assert child.wait(10) < 0
    child.stdout.close()
    assert not path.exists()


def test_a_place_where_groups_are_not_allowed_is_told_with_what_to_do(tmp_path):
    with pytest.raises(NotAllowed, match="memory group") as caught, MemoryGroup(MIB, mounts=tmp_path / "nowhere"):
        pass

    assert "root" in caught.value.hint
