"""The models of the serving benchmark, in the form that each engine reads."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.llama_gguf import write_llama_gguf
from benchmarks.random_llama import ONE_BILLION, write_random_llama
from benchmarks.smollm2 import smollm2_package, write_smollm2_directory

__all__ = ["MODELS", "ModelFiles", "model_files"]

MODELS = ("random-1b", "smollm2")


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
    if name == "random-1b":
        if not (model_dir / "model.safetensors.index.json").is_file():
            print("making a random Llama of about a billion parameters …", file=sys.stderr, flush=True)
            write_random_llama(ONE_BILLION, model_dir)
        gguf_file = write_llama_gguf(model_dir, directory / f"{name}-q8_0.gguf")
        return ModelFiles(
            name=name, store=store, model_dir=model_dir, gguf_file=gguf_file, vocab_size=ONE_BILLION.vocab_size
        )
    _, gguf_file = smollm2_package(store, "int8")
    vocab_size = write_smollm2_directory(gguf_file, model_dir)
    gguf_file = write_llama_gguf(model_dir, directory / f"{name}-q8_0.gguf")
    return ModelFiles(name=name, store=store, model_dir=model_dir, gguf_file=gguf_file, vocab_size=vocab_size)
