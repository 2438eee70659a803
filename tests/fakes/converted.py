"""Converts checkpoints in a test, and reads packages back with the safetensors library, as a stranger would."""

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from teengined.core.model import ModelManifest, UnitSpec
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.source import Checkpoint
from teengined.modelpack.converter import ConversionOptions, convert
from teengined.modelpack.layout import file_key
from teengined.modelpack.precision_rules import parse_precision
from teengined_plugins.sources.hf_directory import DirectoryCheckpoint

__all__ = ["convert_checkpoint", "convert_directory", "read_parameters", "strategy_named"]


def strategy_named(name: str) -> PrecisionStrategy:
    """Return a built-in precision strategy."""
    module = importlib.import_module(f"teengined_plugins.precisions.{name}")
    return module.teengine_register_precisions()[0]()


def convert_directory(source: Path, store: Path, *, precision: str = "fp32", **options: Any) -> ModelManifest:
    """Convert a Hugging Face directory to the package `tiny` (or `name`) in `store`."""
    return convert_checkpoint(DirectoryCheckpoint(source, source.name), store, precision=precision, **options)


def convert_checkpoint(
    checkpoint: Checkpoint,
    store: Path,
    *,
    precision: str = "fp32",
    name: str = "tiny",
    compute_dtype: str = "auto",
    report: Callable[[Any], None] = lambda _progress: None,
) -> ModelManifest:
    """Convert an open checkpoint, and close it. `precision` may have rules for parts."""
    asked = parse_precision(precision)
    options = ConversionOptions(
        name=name,
        store=store,
        compute_dtype=compute_dtype,
        rules=asked.rules,
        strategies={rule.precision: strategy_named(rule.precision) for rule in asked.rules},
        report=report,
        clock=time.monotonic,
    )
    try:
        return convert(checkpoint, strategy_named(asked.base), options)
    finally:
        checkpoint.close()


def read_parameters(directory: Path, manifest: ModelManifest) -> dict[str, torch.Tensor]:
    """Return every stored parameter decoded to fp32 (or its own dtype where it went through no strategy).

    Experts are stacked again along their leading axis; nothing is transposed back.
    """
    whole: dict[str, torch.Tensor] = {}
    experts: dict[str, list[torch.Tensor]] = {}
    for unit in manifest.units:
        for name, tensor in _unit_parameters(directory, unit).items():
            if unit.expert is None:
                whole[name] = tensor
            else:
                experts.setdefault(name, []).append(tensor)
    return {**whole, **{name: torch.stack(slices) for name, slices in experts.items()}}


def _unit_parameters(directory: Path, unit: UnitSpec) -> Mapping[str, torch.Tensor]:
    precisions = {tensor.parameter: tensor.precision or unit.precision for tensor in unit.tensors}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(directory / unit.file, "pt") as file:
        for tensor in unit.tensors:
            stored = file.get_tensor(file_key(tensor.parameter, tensor.part, unit.expert))
            assert tuple(stored.shape) == tensor.shape
            parts.setdefault(tensor.parameter, {})[tensor.part] = stored
    return {name: strategy_named(precisions[name]).decode(kept, torch.float32) for name, kept in parts.items()}
