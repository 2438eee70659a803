"""A whole model as one stage in this process, run on parts of sequences as a test names them, for all their logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from teengined.models.batch import BatchEntry, StepBatch
from teengined.models.kv import KVPool, PoolShape
from teengined.models.skeleton import TORCH_DTYPES, SkeletonOptions, build_skeleton, num_kv_heads, read_config
from teengined.models.stage_model import Head, StageModel
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from teengined_drivers.cpu import CpuDevice

__all__ = ["Part", "StageRunner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tokens of one sequence, whose blocks are `table`."""

    token_ids: Sequence[int]
    start_position: int
    table: Sequence[int]


class StageRunner:
    """Holds the stage, all of it resident. Use as a context."""

    def __init__(self, package_dir: Path, *, is_strict: bool, quantised: bool = False, num_blocks: int = 256) -> None:
        """Read the weights; blocks have 16 tokens."""
        manifest = read_manifest(package_dir)
        spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1 << 30)
        plan = plan_without_measuring(
            manifest, ((spec, manifest.num_layers),), resident_fraction=None, context_tokens=256
        )
        stage = plan.stages[0]
        config, dtype = read_config(package_dir), TORCH_DTYPES[stage.compute_dtype]
        self._device = CpuDevice(spec)
        shape = PoolShape(
            num_blocks=num_blocks,
            block_tokens=16,
            elements_per_token=dict(enumerate(manifest.kv_elements_per_token)),
            num_kv_heads=num_kv_heads(config, max(manifest.kv_elements_per_token)),
            dtype=dtype,
            quantised=quantised,
        )
        self._pool = KVPool(self._device, shape)
        options = SkeletonOptions(
            compute_dtype=dtype, device=torch.device("cpu"), context_tokens=256, is_strict=is_strict
        )
        self._weights = StageWeights(
            package_dir=package_dir, manifest=manifest, stage=stage, device=self._device, options=StreamOptions()
        )
        self._weights.open(lambda _done, _total: None)
        self._model = StageModel(
            skeleton=build_skeleton(config, options),
            manifest=manifest,
            stage=stage,
            weights=self._weights,
            precisions=PluginRegistry.load().precisions(),
        )

    def run(self, *parts: Part) -> list[torch.Tensor]:
        """Run one step and return the logits of every row, (T, V) for each part."""
        entries = [
            BatchEntry(table=part.table, num_tokens=len(part.token_ids), start_position=part.start_position)
            for part in parts
        ]
        logits: list[torch.Tensor] = []

        def read_head(head: Head) -> None:
            logits.append(head.logits(range(head.hidden_TD.shape[0])))

        ids = torch.tensor([token_id for part in parts for token_id in part.token_ids])
        self._model.forward(StepBatch(entries, self._pool), ids, read_head)
        return list(logits[0].split([len(part.token_ids) for part in parts]))

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give everything back."""
        self._weights.close()
        self._pool.close()
        self._device.close()
