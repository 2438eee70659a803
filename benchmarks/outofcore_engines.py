"""The engines of the out-of-core benchmark, each a program in a process of its own: ours, and the peers'."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving_models import ModelFiles, write_q4_gguf
from teengined.interfaces.registry import PluginRegistry

__all__ = ["ENGINES", "StreamingEngine", "engine_named"]

ENGINES = (
    "teengine-int8", "teengine-int4", "teengine-bf16", "llama.cpp-q8_0", "llama.cpp-q4_0", "accelerate-bf16",
    "airllm-bf16", "airllm-8bit", "airllm-4bit",
)  # fmt: skip
"""By default all but `teengine-bf16`, whose package is as large again as the checkpoint."""

_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingEngine(ABC):
    """Something that decodes a model larger than its memory."""

    name: str
    precision: str
    """Of weights and activations, for people."""

    @abstractmethod
    def absence(self) -> str:
        """Return why it cannot be run here at all; empty if it can."""

    @abstractmethod
    def weight_files(self, files: ModelFiles) -> Sequence[Path]:
        """Return the files that it reads the model from, made if they are not there."""

    @abstractmethod
    def program(self) -> Sequence[str]:
        """Return the command that takes the file with the order."""

    def order(self, files: ModelFiles, scratch_dir: Path) -> dict[str, Any]:
        """Return what its order says of the model."""
        return {
            "model_dir": str(files.model_dir),
            "gguf_file": "",
            "package_dir": "",
            "scratch_dir": str(scratch_dir / f"{self.name}-{files.name}"),
            "compression": "",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEngine(StreamingEngine):
    """This project: a stage in the process, as a worker runs it."""

    strategy: str

    def absence(self) -> str:
        """Return whether the precision is missing."""
        known = PluginRegistry.load().precisions()
        return "" if self.strategy in known else f"no precision strategy {self.strategy} is installed"

    def weight_files(self, files: ModelFiles) -> Sequence[Path]:
        """Return the package's units."""
        return sorted((files.store / files.package_name(self.strategy)).glob("units/*.safetensors"))

    def program(self) -> Sequence[str]:
        """Return our case."""
        return [sys.executable, "-m", "benchmarks.outofcore_case"]

    def order(self, files: ModelFiles, scratch_dir: Path) -> dict[str, Any]:
        """Name the package."""
        package_dir = files.store / files.package_name(self.strategy)
        return {**StreamingEngine.order(self, files, scratch_dir), "package_dir": str(package_dir)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerEngine(StreamingEngine):
    """Another engine: a program of `benchmarks/peers` run by the Python of its environment."""

    python: Path
    script: str
    compression: str = ""

    def absence(self) -> str:
        """Return what is missing."""
        return "" if self.python.exists() else f"there is no {self.python}"

    def weight_files(self, files: ModelFiles) -> Sequence[Path]:
        """Return the checkpoint's shards."""
        return files.checkpoint_files

    def program(self) -> Sequence[str]:
        """Return its script."""
        return [str(self.python), str(_PEERS / self.script)]

    def order(self, files: ModelFiles, scratch_dir: Path) -> dict[str, Any]:
        """Name its own compression."""
        return {**StreamingEngine.order(self, files, scratch_dir), "compression": self.compression}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppEngine(PeerEngine):
    """llama.cpp on a mapped GGUF file."""

    kind: str

    def weight_files(self, files: ModelFiles) -> Sequence[Path]:
        """Return the file."""
        return [files.gguf_file if self.kind == "q8_0" else write_q4_gguf(files.gguf_file, self.python)]

    def order(self, files: ModelFiles, scratch_dir: Path) -> dict[str, Any]:
        """Name the file."""
        (gguf_file,) = self.weight_files(files)
        return {**StreamingEngine.order(self, files, scratch_dir), "gguf_file": str(gguf_file)}


def engine_named(name: str, peers_dir: Path) -> StreamingEngine:
    """Return one of `ENGINES`; peers' environments are `llama` and `hf` below `peers_dir`."""
    kind, _, form = name.partition("-")
    if kind == "teengine":
        return OwnEngine(name=name, precision=f"{form} × bf16", strategy=form)
    if kind == "llama.cpp":
        python = peers_dir / "llama" / "bin" / "python"
        script = "stream_llama_cpp.py"
        return LlamaCppEngine(name=name, precision=f"{form.upper()} × Q8", python=python, script=script, kind=form)
    python = peers_dir / "hf" / "bin" / "python"
    if kind == "accelerate":
        return PeerEngine(name=name, precision="bf16 × bf16", python=python, script="stream_accelerate.py")
    compression = "" if form == "bf16" else form
    script = "stream_airllm.py"
    return PeerEngine(name=name, precision=f"{form} × bf16", python=python, script=script, compression=compression)
