"""Models for comparing engines, in the form that each engine reads, all made on the first run."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.llama_gguf import write_llama_gguf
from benchmarks.random_llama import ONE_BILLION, THREE_BILLION, write_random_llama
from benchmarks.random_mixture import SMALL_MIXTURE, write_random_mixture
from benchmarks.smollm2 import smollm2_package, write_smollm2_directory

__all__ = ["MODELS", "RANDOM_MODELS", "ModelFiles", "model_files", "write_q4_gguf"]

MODELS = ("random-1b", "smollm2")
"""Of the serving benchmark."""

_RANDOM: dict[str, tuple[int, Callable[[Path], Path]]] = {
    "random-1b": (ONE_BILLION.vocab_size, lambda directory: write_random_llama(ONE_BILLION, directory)),
    "random-3b": (THREE_BILLION.vocab_size, lambda directory: write_random_llama(THREE_BILLION, directory)),
    "random-moe": (SMALL_MIXTURE.vocab_size, lambda directory: write_random_mixture(SMALL_MIXTURE, directory)),
}
RANDOM_MODELS = tuple(_RANDOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """One model's weights, several times."""

    name: str
    store: Path
    model_dir: Path
    """For transformers and vLLM, in bf16."""
    gguf_file: Path
    """For llama.cpp, in Q8_0."""
    vocab_size: int

    @property
    def checkpoint_files(self) -> list[Path]:
        """Return the shards of `model_dir`."""
        return sorted(self.model_dir.glob("*.safetensors"))

    def package_name(self, precision: str) -> str:
        """Return the package's name in the store; it is made if it is not there."""
        name = f"{self.name}-{precision}"
        if not (self.store / name).is_dir():
            command = ["convert", str(self.model_dir), "--store", str(self.store), "--name", name]
            subprocess.run(
                [sys.executable, "-m", "teengined.modelpack", *command, "--precision", precision],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return name


def model_files(name: str, directory: Path) -> ModelFiles:
    """Return the files of a model, made below `directory` on the first run."""
    model_dir, store = directory / name, directory / "models"
    if name in _RANDOM:
        vocab_size, write = _RANDOM[name]
        if not (model_dir / "model.safetensors.index.json").is_file():
            print(f"making the model {name} with random weights …", file=sys.stderr, flush=True)
            write(model_dir)
    else:
        _, gguf_file = smollm2_package(store, "int8")
        vocab_size = write_smollm2_directory(gguf_file, model_dir)
    gguf_file = write_llama_gguf(model_dir, directory / f"{name}-q8_0.gguf")
    return ModelFiles(name=name, store=store, model_dir=model_dir, gguf_file=gguf_file, vocab_size=vocab_size)


def write_q4_gguf(q8_file: Path, python: Path) -> Path:
    """Return the file in Q4_0 beside `q8_file`, made by the llama.cpp of the environment of `python` if not there."""
    path = q8_file.with_name(q8_file.name.replace("q8_0", "q4_0"))
    if not path.is_file():
        program = Path(__file__).parent / "peers" / "quantize_llama_cpp.py"
        subprocess.run([str(python), str(program), str(q8_file), str(path)], check=True, stdout=subprocess.DEVNULL)
    return path
