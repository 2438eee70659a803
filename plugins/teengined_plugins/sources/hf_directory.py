"""Checkpoints as Hugging Face stores them: a directory of config.json, safetensors shards and a tokenizer."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from teengined.core.errors import SourceError
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.source import Checkpoint, ModelSource, SourceTensor
from teengined_plugins.sources.checked_files import checked_path, existing_directory, fingerprint_of, read_json
from teengined_plugins.sources.quantised.methods import QUANTISATION_KEYS, open_quantised
from teengined_plugins.sources.quantised.scheme import QuantisedTensor, StoredTensors
from teengined_plugins.sources.safetensors_file import SafetensorsFile
from teengined_plugins.sources.tokenizer_files import copy_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["DirectoryCheckpoint", "HFDirectory", "teengine_register_sources"]

_INDEX = "model.safetensors.index.json"
_MODELOPT_CONFIG = "hf_quant_config.json"
_SINGLE = "model.safetensors"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_MAX_SHARDS = 4096


class HFDirectory(ModelSource):
    """Opens directories that hold a `config.json`."""

    name: ClassVar[str] = "hf-directory"

    def matches(self, reference: str) -> bool:
        """Say yes to every existing directory, so that a wrong one gets an error that says what it lacks."""
        return existing_directory(reference) is not None

    def open(self, reference: str) -> Checkpoint:
        """Open the directory; headers of all shards are checked before this returns."""
        directory = Path(reference).expanduser()
        return DirectoryCheckpoint(directory, directory.resolve().name)


class DirectoryCheckpoint(Checkpoint):
    """A directory of safetensors shards with checked headers."""

    def __init__(self, directory: Path, description: str) -> None:
        """Check configuration, index and headers.

        Raises:
            SourceError: something is missing, malformed or points out of the directory; names file and tensor.
        """
        self._directory = directory
        self._description = description
        self._files: list[SafetensorsFile] = []
        self._quantised: dict[str, QuantisedTensor] = {}
        if not (directory / "config.json").exists():
            raise SourceError(
                f"{directory.name} is no model directory: it has no config.json",
                hint="name the directory that holds config.json and the .safetensors files",
            )
        self._config = _full_config(directory)
        try:
            self._stored = self._open_shards()
            self._owners = dict(self._stored)
            self._quantised = self._open_quantised()
        except BaseException:
            self.close()
            raise

    @property
    def config(self) -> Mapping[str, Any]:
        """The directory's `config.json`."""
        return self._config

    @property
    def description(self) -> str:
        """The name it was opened under."""
        return self._description

    @property
    def fingerprint(self) -> str:
        """A digest over the identities of the shards."""
        return fingerprint_of(file.identity for file in self._files)

    def tensors(self) -> tuple[SourceTensor, ...]:
        """List the tensors of all shards; what is quantised as the tensor that it stands for."""
        return (
            *(SourceTensor(name=one.name, dtype=one.dtype, shape=one.shape) for one in self._quantised.values()),
            *(
                SourceTensor(name=name, dtype=file.tensors[name].dtype, shape=file.tensors[name].shape)
                for name, file in self._owners.items()
            ),
        )

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor, unpacked where it is quantised; its memory is its own."""
        if name in self._quantised:
            return self._quantised[name].read(self._read_stored)
        return self._read_stored(name)

    def write_tokenizer(self, directory: Path) -> Iterable[str]:
        """Copy tokenizer, chat template and generation defaults."""
        return copy_tokenizer(self._directory, directory)

    def close(self) -> None:
        """Close all shards."""
        for file in self._files:
            file.close()

    def _read_stored(self, name: str) -> "torch.Tensor":
        return self._stored[name].read(name)

    def _open_quantised(self) -> dict[str, QuantisedTensor]:
        """Take what is quantised out of the stored tensors, and out of what the configuration says."""
        tensors = {name: file.tensors[name] for name, file in self._owners.items()}
        stored = StoredTensors(tensors=tensors, read=self._read_stored)
        found = open_quantised(self._config, stored)
        if found is not None:
            self._config = {key: value for key, value in self._config.items() if key not in QUANTISATION_KEYS}
            self._owners = {name: file for name, file in self._owners.items() if name not in stored.used}
        return found or {}

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        index = self._index()
        owners: dict[str, SafetensorsFile] = {}
        for shard in sorted(set(index.values())) if index is not None else [self._single_file()]:
            file = SafetensorsFile(checked_path(self._directory, shard))
            self._files.append(file)
            for name in file.tensors:
                if index is None or index.get(name) == shard:
                    owners[name] = file
        for name, shard in (index or {}).items():
            if name not in owners:
                raise SourceError(f"{shard}: tensor {name!r:.120} is missing, though {_INDEX} says it is there")
        return owners

    def _index(self) -> dict[str, str] | None:
        if not (self._directory / _INDEX).exists():
            return None
        weight_map: object = read_json(self._directory, _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SourceError(f"{_INDEX} has no weight_map")
        entries = cast("dict[str, object]", weight_map)
        for name, shard in entries.items():
            if not isinstance(shard, str) or not shard.endswith(".safetensors"):
                raise SourceError(
                    f"{_INDEX}: tensor {name!r:.120} lies in {shard!r:.120}, which is no .safetensors file"
                )
        if len(set(entries.values())) > _MAX_SHARDS:
            raise SourceError(f"{_INDEX} names more than {_MAX_SHARDS} files")
        return cast("dict[str, str]", entries)

    def _single_file(self) -> str:
        names = sorted(path.name for path in self._directory.glob("*.safetensors"))
        if _SINGLE in names:
            return _SINGLE
        if len(names) == 1:
            return names[0]
        if names:
            raise SourceError(
                f"{self._directory.name} has {len(names)} safetensors files and no {_INDEX} that says what is where",
                hint=f"add {_INDEX} from the model's page",
            )
        pickles = sorted(path.name for path in self._directory.iterdir() if path.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise SourceError(
                f"{pickles[0]} is a pickle, which can run code when it is opened; only safetensors files are read",
                hint="get the model's .safetensors files (its page often offers a conversion), or, if you trust the "
                'file, rewrite it: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{self._directory.name}').save_pretrained('OUT')\"",
            )
        raise SourceError(f"{self._directory.name} has no weights: no .safetensors file is there")


def _full_config(directory: Path) -> dict[str, Any]:
    """Return `config.json`, with what ModelOpt's older exports say in a file of their own."""
    config = read_json(directory, "config.json")
    if "quantization_config" not in config and (directory / _MODELOPT_CONFIG).is_file():
        table = read_json(directory, _MODELOPT_CONFIG).get("quantization")
        if isinstance(table, dict) and table.get("quant_algo"):
            config["quantization_config"] = {**cast("dict[str, Any]", table), "quant_method": "modelopt"}
    return config


@hookimpl
def teengine_register_sources() -> list[type[ModelSource]]:
    """Register the source."""
    return [HFDirectory]
