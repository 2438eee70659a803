"""The real model of the comparisons: SmolLM2-135M-Instruct as a package, and what transformers says to 8 prompts."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from teengined.modelpack.aliases import ALIASES, fetch_alias

__all__ = ["PROMPTS", "reference_tokens", "smollm2_package", "write_smollm2_directory"]

PROMPTS = (
    "The capital of France is",
    "Write a haiku about the sea.",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the river,",
    "Explain in one sentence why the sky is blue.",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,",
    "The three laws of thermodynamics say that",
)


def smollm2_package(store: Path, precision: str) -> tuple[Path, Path]:
    """Return the package in `precision`, converted if it is not in `store`, and the GGUF file it came from."""
    gguf_file = fetch_alias(ALIASES["smollm2"], Path(tempfile.gettempdir()) / "teengine-aliases")
    package_dir = store / f"smollm2-{precision}"
    if not package_dir.is_dir():
        command = ["convert", str(gguf_file), "--store", str(store), "--name", package_dir.name]
        subprocess.run(
            [sys.executable, "-m", "teengined.modelpack", *command, "--precision", precision],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return package_dir, gguf_file


def reference_tokens(
    gguf_file: Path, prompts: Sequence[str], num_tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts' token ids and transformers' greedy continuations, loaded by its own GGUF reader in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32).eval()
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    answers: list[list[int]] = []
    for ids in prompt_ids:
        with torch.inference_mode():
            output = model.generate(  # pyright: ignore[reportAttributeAccessIssue] - its stub asks for too much
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        answers.append(output[0, len(ids) :].tolist())
    return prompt_ids, answers


def write_smollm2_directory(gguf_file: Path, directory: Path) -> int:
    """Write the model as a Hugging Face directory in bf16, if it is not there, and return its vocabulary's size."""
    if not (directory / "config.json").is_file():
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            quantization_config=GgufConfig(gguf_file=gguf_file.name, dequantize=True),
            dtype=torch.bfloat16,
        )
        AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).save_pretrained(directory)
        model.save_pretrained(directory)
    return int(json.loads((directory / "config.json").read_text("utf-8"))["vocab_size"])
