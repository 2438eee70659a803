"""Tiny models, converted, as the stages of a pipeline in this process; and their sequences, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.local_pipeline import LocalPipeline, PipelineOptions
from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.core.request import Goal
from teengined.core.sampling import SamplingParams
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from teengined.protocol.worker_messages import SequenceOpen, SequencePart
from tests.fakes.converted import convert_directory
from tests.fakes.tiny_models import build_tiny_model

__all__ = ["LocalSequence", "build_package", "open_pipeline"]

CONTEXT_TOKENS, NUM_SLOTS = 96, 4


def build_package(
    architecture: str, directory: Path, *, precision: str = "fp32", dtype: torch.dtype = torch.float32
) -> tuple[Path, Path]:
    """Return the checkpoint's and the package's directory."""
    source = build_tiny_model(architecture, directory / "source", dtype=dtype)
    store = directory / "store"
    store.mkdir()
    convert_directory(source, store, precision=precision)
    return source, store / "tiny"


def open_pipeline(
    package_dir: Path, *, is_streamed: bool = False, num_stages: int = 1, **options: Any
) -> LocalPipeline:
    """Open the model in one or two stages; `options` are those of the pipeline. Blocks have 16 tokens, 24 in all."""
    manifest = read_manifest(package_dir)
    cut = (manifest.num_layers,) if num_stages == 1 else (1, manifest.num_layers - 1)
    specs = tuple(DeviceSpec(id=f"cpu:{i}", driver="cpu", memory_bytes=1 << 30, threads=1) for i in range(len(cut)))
    plan = plan_without_measuring(
        manifest,
        tuple(zip(specs, cut, strict=True)),
        resident_fraction=0.0 if is_streamed else None,
        context_tokens=CONTEXT_TOKENS,
        num_slots=NUM_SLOTS,
    )
    return LocalPipeline(package_dir, plan, specs, PluginRegistry.load(), PipelineOptions(direct_io=False, **options))


@dataclass
class LocalSequence:
    """A sequence as a scheduler would remember it."""

    id: int
    prompt: Sequence[int]
    goal: Goal = Goal.GENERATE
    sampling: SamplingParams = field(default_factory=SamplingParams)
    pooling: str = ""
    score_start: int = 0

    def opened(self) -> SequenceOpen:
        """Tell the workers of it."""
        return SequenceOpen(
            sequence_id=self.id,
            num_prompt_tokens=len(self.prompt),
            sampling=self.sampling,
            goal=self.goal,
            pooling=self.pooling,
            score_start=self.score_start,
        )

    def part(self, start: int, end: int, blocks: Sequence[int] = ()) -> SequencePart:
        """Return prompt tokens `[start, end)`; the last of a prompt to be continued draws."""
        is_last = end >= len(self.prompt)
        return SequencePart(
            sequence_id=self.id,
            token_ids=tuple(self.prompt[start:end]),
            start_position=start,
            new_blocks=tuple(blocks),
            sample=is_last and self.goal is Goal.GENERATE,
        )

    def decode(self, token_id: int, position: int, blocks: Sequence[int] = ()) -> SequencePart:
        """Return a decode step of the token drawn last."""
        return SequencePart(
            sequence_id=self.id,
            token_ids=(token_id,),
            start_position=position,
            new_blocks=tuple(blocks),
            sample=True,
        )
