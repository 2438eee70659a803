"""The model source `deepspeed`: opens what a DeepSpeed training run saved, as its fp32 weights.

Weights are read from the optimizer's fp32 copy where there is one, since the model's own is bf16 or fp16. The `.pt`
files around them are read by a process that may die (`sources/pickled`); the values by their ranges.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from teengined.core.errors import SourceError
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.source import Checkpoint, ModelSource, SourceTensor
from teengined_plugins.sources.checked_files import existing_directory, fingerprint_of, read_json
from teengined_plugins.sources.deepspeed.layout import Layout, find_layout, is_deepspeed
from teengined_plugins.sources.deepspeed.partitions import (
    MODEL_VALUES,
    OPTIMIZER_VALUES,
    parameter_shapes,
    partitioned_tensors,
    whole_tensor,
)
from teengined_plugins.sources.pickled.pieces import PiecedTensor, read_pieces
from teengined_plugins.sources.pickled.reading import FileIdentity, OpenedFile, read_files
from teengined_plugins.sources.pickled.values import TensorRange
from teengined_plugins.sources.tokenizer_files import copy_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["DeepSpeed", "DeepSpeedCheckpoint", "teengine_register_sources"]


class DeepSpeed(ModelSource):
    """Opens directories of ZeRO's files, by the directory with `latest` or by the one that it names."""

    name: ClassVar[str] = "deepspeed"

    def matches(self, reference: str) -> bool:
        """Say yes to a directory with DeepSpeed's files and without safetensors."""
        directory = existing_directory(reference)
        try:
            return directory is not None and is_deepspeed(directory)
        except OSError:  # it may not be looked into: whoever takes it for its own says so
            return False

    def open(self, reference: str) -> Checkpoint:
        """Open it; every file's description is read and checked before this returns."""
        directory = Path(reference).expanduser()
        return DeepSpeedCheckpoint(directory, directory.resolve().name)


class DeepSpeedCheckpoint(Checkpoint):
    """A DeepSpeed checkpoint whose files have been read, but for their tensors."""

    def __init__(self, directory: Path, description: str) -> None:
        """Find the files, have them read, and say where every parameter lies.

        Raises:
            SourceError: something is missing, damaged, or not of ZeRO's making; names the file.
        """
        layout = find_layout(directory)
        self._companions = layout.companions
        self._description = description
        self._config = read_json(layout.companions, "config.json")
        self._identities: dict[Path, FileIdentity] = {}
        self._tensors = self._universal(layout) if layout.parameter_files else self._partitioned(layout)
        if not self._tensors:
            raise SourceError(f"{layout.tag} holds no weights")

    @property
    def config(self) -> Mapping[str, Any]:
        """The `config.json` beside the checkpoint."""
        return self._config

    @property
    def description(self) -> str:
        """The name it was opened under."""
        return self._description

    @property
    def fingerprint(self) -> str:
        """A digest over the identities of its files."""
        return fingerprint_of(self._identities.values())

    def tensors(self) -> tuple[SourceTensor, ...]:
        """List parameters and buffers."""
        return tuple(
            SourceTensor(name=name, dtype=tensor.dtype, shape=tensor.shape) for name, tensor in self._tensors.items()
        )

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor, joined from its parts."""
        return read_pieces(self._tensors[name], self._identities)

    def write_tokenizer(self, directory: Path) -> Iterable[str]:
        """Copy tokenizer, chat template and generation defaults."""
        return copy_tokenizer(self._companions, directory)

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""

    def _partitioned(self, layout: Layout) -> dict[str, PiecedTensor]:
        model = self._remember(read_files(layout.model_files, MODEL_VALUES))
        optimizer = self._remember(read_files(layout.optimizer_files, OPTIMIZER_VALUES))
        return partitioned_tensors(model, optimizer, partitioned=layout.partitioned)

    def _universal(self, layout: Layout) -> dict[str, PiecedTensor]:
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self._remember(read_files(layout.model_files[:1], [("param_shapes",)])):
            for group in parameter_shapes(file) if file.values.get("param_shapes") else []:
                shapes.update(group)
        names = [name for name, _ in layout.parameter_files]
        files = self._remember(read_files([path for _, path in layout.parameter_files], [()]))
        return {
            name: whole_tensor(file, name, _parameter(name, file), shapes.get(name))
            for name, file in zip(names, files, strict=True)
        }

    def _remember(self, files: Iterable[OpenedFile]) -> list[OpenedFile]:
        kept = list(files)
        self._identities.update({file.path: file.identity for file in kept})
        return kept


def _parameter(name: str, file: OpenedFile) -> TensorRange:
    """Return the tensor of a universal checkpoint's file: the value itself, or under `param`."""
    value = file.values.get("")
    value = value.get("param") if isinstance(value, dict) else value
    if not isinstance(value, TensorRange):
        raise SourceError(f"{name:.120}/{file.path.name} holds no tensor")
    return value


@hookimpl
def teengine_register_sources() -> list[type[ModelSource]]:
    """Register the source."""
    return [DeepSpeed]
