"""The engines of the serving benchmark: ours behind its daemon, the others in processes of their own."""

import json
import os
import random
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.private_daemon import PrivateDaemon
from benchmarks.serving_models import ModelFiles
from benchmarks.streams import Stamps, read_streams
from teengined.core.device import DeviceSpec
from teengined.protocol.messages import LoadModel, PlanModel

__all__ = ["ENGINES", "Engine", "Workload", "engine_named"]

ENGINES = ("teengine-int8", "teengine-bf16", "transformers", "vllm", "llama.cpp")
_SEED = 7
_PEER_SECONDS = 3600
_HEADROOM_TOKENS = 16
_DEVICE_BYTES = 12 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What every engine is asked for."""

    files: ModelFiles
    prompts: Sequence[Sequence[int]]
    streams: Sequence[int]
    num_tokens: int
    num_threads: int

    @classmethod
    def random(cls, files: ModelFiles, streams: Sequence[int], num_tokens: int, prompt_tokens: int) -> "Workload":
        """Return prompts of random ids, the same in every run, different from each other."""
        rng = random.Random(_SEED)
        prompts = [[rng.randrange(files.vocab_size) for _ in range(prompt_tokens)] for _ in range(max(streams))]
        threads = len(os.sched_getaffinity(0))
        return cls(files=files, prompts=prompts, streams=streams, num_tokens=num_tokens, num_threads=threads)

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.prompts)) + self.num_tokens + _HEADROOM_TOKENS


class Engine(ABC):
    """Something that answers prompts."""

    name: str

    def absence(self) -> str:
        """Return why it cannot be run here; empty if it can."""
        return ""

    def can_run(self, files: ModelFiles) -> bool:
        """Whether it reads this model."""
        return files.gguf_file.is_file() or self.name != "llama.cpp"

    @abstractmethod
    def run(self, workload: Workload) -> Mapping[int, Stamps]:
        """Return, for each number of streams, when each token of each stream came."""


class OwnEngine(Engine):
    """This project, through its socket."""

    def __init__(self, precision: str) -> None:
        """Run the package in `precision`."""
        self.name, self._precision = f"teengine-{precision}", precision

    def run(self, workload: Workload) -> Mapping[int, Stamps]:
        """Load the model once, resident, and read the cases."""
        files, most = workload.files, max(workload.streams)
        package = files.package_name(self._precision)
        cores = tuple(sorted(os.sched_getaffinity(0)))
        device = DeviceSpec(
            id="cpu:0", driver="cpu", memory_bytes=_DEVICE_BYTES, threads=workload.num_threads, cores=cores
        )
        settings = "[batching]\nprefix_cache = false"
        with PrivateDaemon(files.store.parent / "state", files.store, [device], settings) as daemon:
            plan = PlanModel(model=package, context_tokens=workload.context_tokens, num_slots=most)
            daemon.client.load(LoadModel(plan=plan, verify=False))
            read_streams(daemon.endpoint, package, workload.prompts[:1], 2)
            return {number: self._case(daemon.endpoint, package, workload, number) for number in workload.streams}

    def _case(self, endpoint: str, package: str, workload: Workload, num_streams: int) -> Stamps:
        """Read once for the kernels to be chosen, once for the figures."""
        prompts = workload.prompts[:num_streams]
        read_streams(endpoint, package, prompts, 3)
        return read_streams(endpoint, package, prompts, workload.num_tokens)


class PeerEngine(Engine):
    """Another engine: a program of `benchmarks/peers` run by the Python of its environment."""

    def __init__(self, name: str, program: str, python: Path) -> None:
        """`python` may not exist: then the engine is absent."""
        self.name, self._program, self._python = name, program, python

    def absence(self) -> str:
        """Return what is missing."""
        return "" if self._python.exists() else f"there is no {self._python}"

    def run(self, workload: Workload) -> Mapping[int, Stamps]:
        """Run its program once for all cases."""
        order = {
            "model_dir": str(workload.files.model_dir),
            "gguf_file": str(workload.files.gguf_file),
            "prompts": workload.prompts,
            "streams": workload.streams,
            "num_tokens": workload.num_tokens,
            "num_threads": workload.num_threads,
        }
        program = Path(__file__).parent / "peers" / self._program
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, tempfile.TemporaryFile() as errors:
            file.write(json.dumps(order))
            file.flush()
            command = [str(self._python), str(program), file.name]
            outcome = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, timeout=_PEER_SECONDS, check=False)
            if outcome.returncode != 0:
                errors.seek(0)
                raise RuntimeError(f"{self.name} failed:\n{errors.read().decode(errors='replace')[-2000:]}")
        cases = json.loads(outcome.stdout.decode().strip().splitlines()[-1])
        return {case["streams"]: case["stamps"] for case in cases}


def engine_named(name: str, peers_dir: Path) -> Engine:
    """Return one of `ENGINES`."""
    if name.startswith("teengine-"):
        return OwnEngine(name.removeprefix("teengine-"))
    peers = {
        "transformers": ("serve_transformers.py", Path(sys.executable)),
        "vllm": ("serve_vllm.py", peers_dir / "vllm" / "bin" / "python"),
        "llama.cpp": ("serve_llama_cpp.py", peers_dir / "llama" / "bin" / "python"),
    }
    return PeerEngine(name, *peers[name])
