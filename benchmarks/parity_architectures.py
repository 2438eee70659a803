"""Parity of tiny random models: every architecture that the generic path claims, in one stage and in three.

Where a model routes to experts, once more with fewer of them cached than a step asks for.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.local_pipeline import LocalPipeline, PipelineOptions
from benchmarks.parity_row import ParityRow, compare
from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.converter import ConversionOptions, convert
from teengined.modelpack.manifest import read_manifest
from tests.fakes.tiny_models import TINY_ARCHITECTURES, TINY_VOCABULARY, build_tiny_model

__all__ = ["architecture_rows", "compare_architecture", "compare_checkpoint"]

_NUM_TOKENS = 16
_CONTEXT_TOKENS = 64
_SEED = 11
_PROMPT_LENGTHS = (1, 7, 12)
_OPTIONS = PipelineOptions(direct_io=False)


def architecture_rows(scratch: Path) -> Iterator[ParityRow]:
    """Yield the rows of each architecture: one resident stage, a stage a layer with everything streamed, and so on."""
    for architecture in TINY_ARCHITECTURES:
        yield from compare_architecture(architecture, scratch / architecture)


def compare_architecture(architecture: str, scratch: Path) -> Iterator[ParityRow]:
    """Build, convert and run one tiny model; yield its rows."""
    source = build_tiny_model(architecture, scratch / "source", seed=_SEED)
    reference_model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    yield from compare_checkpoint(architecture, source, reference_model, scratch / "store")


def compare_checkpoint(
    architecture: str, source: Path, reference_model: torch.nn.Module, store: Path
) -> Iterator[ParityRow]:
    """Convert and run the checkpoint `source`; yield its rows against what `reference_model` generates."""
    _convert(source, store, architecture)
    package_dir = store / architecture
    prompts = _prompts(TINY_VOCABULARY)
    reference = [_generate(reference_model, prompt) for prompt in prompts]
    manifest = read_manifest(package_dir)
    num_layers = manifest.num_layers
    placements: dict[str, tuple[tuple[int, ...], float | None]] = {
        "one stage, resident": ((num_layers,), None),
        "a stage a layer, streamed": ((1,) * num_layers, 0.0),
    }
    if manifest.num_experts:
        placements["one stage, half of the bytes, experts cached"] = ((num_layers,), 0.5)
    for name, (cut, resident) in placements.items():
        yield compare(architecture, name, _ours(package_dir, cut, resident, prompts), reference)


def _convert(source: Path, store: Path, name: str) -> None:
    registry = PluginRegistry.load()
    store.mkdir()
    options = ConversionOptions(
        name=name, store=store, compute_dtype="fp32", report=lambda _: None, clock=time.monotonic
    )
    with contextlib.closing(registry.source_for(str(source)).open(str(source))) as checkpoint:
        convert(checkpoint, registry.precision("fp32"), options)


def _prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(_SEED)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in _PROMPT_LENGTHS]


def _generate(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=_NUM_TOKENS,
            min_new_tokens=_NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def _ours(package_dir: Path, cut: tuple[int, ...], resident: float | None, prompts: list[list[int]]) -> list[list[int]]:
    specs = tuple(DeviceSpec(id=f"cpu:{i}", driver="cpu", memory_bytes=1 << 30, threads=1) for i in range(len(cut)))
    plan = plan_without_measuring(
        read_manifest(package_dir),
        tuple(zip(specs, cut, strict=True)),
        resident_fraction=resident,
        context_tokens=_CONTEXT_TOKENS,
        num_slots=len(prompts),
    )
    with LocalPipeline(package_dir, plan, specs, PluginRegistry.load(), _OPTIONS) as pipeline:
        return pipeline.generate(prompts, _NUM_TOKENS)
