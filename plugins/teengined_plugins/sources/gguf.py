"""Checkpoints in llama.cpp's form: one GGUF file with weights, configuration and tokenizer.

Block formats are unpacked by the `gguf` library; names, permutations and the tokenizer follow transformers' own reading
of GGUF files.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from teengined.core.errors import SourceError
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.source import Checkpoint, ModelSource, SourceTensor
from teengined_plugins.sources.gguf_config import config_mapping
from teengined_plugins.sources.gguf_header import check_head
from teengined_plugins.sources.gguf_tensors import GgufEntry, dequantize_rows, map_entries
from teengined_plugins.sources.tokenizer_files import save_tokenizer

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader

__all__ = ["GgufCheckpoint", "GgufSource", "teengine_register_sources"]

_MAGIC = b"GGUF"


class GgufSource(ModelSource):
    """Opens `.gguf` files."""

    name: ClassVar[str] = "gguf"

    def matches(self, reference: str) -> bool:
        """Say yes to what ends in `.gguf`, there or not, and to files that begin as one."""
        try:
            path = Path(reference).expanduser()
            if path.suffix.lower() == ".gguf":
                return True
            if not path.is_file():
                return False
            with path.open("rb") as file:
                return file.read(4) == _MAGIC
        except (OSError, RuntimeError, ValueError):  # a name that no file can have, an unknown user, a NUL
            return False

    def open(self, reference: str) -> Checkpoint:
        """Open the file and check its table of tensors."""
        return GgufCheckpoint(Path(reference).expanduser())


class GgufCheckpoint(Checkpoint):
    """An open GGUF file."""

    def __init__(self, path: Path) -> None:
        """Read metadata and the table of tensors.

        Raises:
            SourceError: no such file, not GGUF, truncated, or inconsistent.
        """
        self._path = path
        self._reader = _open_reader(path)
        self._config: Mapping[str, Any] | None = None
        self._architecture = str(self._metadata("general.architecture") or "")

    @property
    def config(self) -> Mapping[str, Any]:
        """The metadata as a `config.json`."""
        if self._config is None:
            self._config = config_mapping(self._metadata, self._names(), self._rope_factors())
        return self._config

    @property
    def description(self) -> str:
        """The file's name."""
        return self._path.name

    @property
    def fingerprint(self) -> str:
        """A digest over the file's name, size, time of change and inode."""
        status = self._path.stat()
        identity = repr((self._path.name, status.st_size, status.st_mtime_ns, status.st_ino))
        return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()

    def tensors(self) -> tuple[SourceTensor, ...]:
        """List the tensors under Hugging Face names; stacked experts one by one."""
        return tuple(entry.describe(name) for name, entry in self._entries.items())

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor, or one expert of it, unpacked to fp32."""
        entry = self._entries[name]
        return dequantize_rows(entry, lambda values: self._processor.process(values, entry.tensor.name).weights)

    def write_tokenizer(self, directory: Path) -> Iterable[str]:
        """Rebuild the tokenizer from the metadata, as transformers does."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(self._path.parent), gguf_file=self._path.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a converter of untrusted metadata may fail in any way
            problem = " ".join(str(error).split())
            raise SourceError(f"{self._path.name}: its tokenizer cannot be rebuilt: {problem:.200}") from error
        return save_tokenizer(tokenizer, directory)

    def close(self) -> None:
        """Do nothing: the file is mapped, and unmapped with the last tensor that refers to it."""

    @cached_property
    def _entries(self) -> dict[str, GgufEntry]:
        from transformers import AutoConfig

        config = AutoConfig.for_model(**self.config)
        return map_entries(list(self._reader.tensors), config, self._architecture)

    @cached_property
    def _processor(self) -> Any:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        return TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)(config=dict(self.config))

    def _metadata(self, key: str) -> Any:
        field = self._reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, IndexError, TypeError) as error:
            raise SourceError(f"{self._path.name}: metadata field {key!r:.80} is malformed: {error}") from error

    def _names(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self._reader.tensors)

    def _rope_factors(self) -> list[float] | None:
        for tensor in self._reader.tensors:
            if tensor.name == "rope_freqs.weight":
                return [float(value) for value in dequantize_rows(GgufEntry(tensor=tensor), lambda values: values)]
        return None


def _open_reader(path: Path) -> "GGUFReader":
    check_head(path)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
    except Exception as error:  # a parser of an untrusted file may fail in any way
        problem = " ".join(str(error).split())
        raise SourceError(f"{path.name} is truncated or malformed: {problem:.200}") from error
    _check_ranges(path, reader)
    return reader


def _check_ranges(path: Path, reader: "GGUFReader") -> None:
    """Hold every tensor to lie inside the file, apart from all others."""
    file_bytes, end, previous = path.stat().st_size, 0, ""
    for tensor in sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset)):
        offset = int(tensor.data_offset)
        if offset < end:
            raise SourceError(f"{path.name}: tensor {tensor.name!r:.120} overlaps {previous!r:.120}")
        end, previous = offset + int(tensor.n_bytes), tensor.name
        if end > file_bytes:
            raise SourceError(f"{path.name}: tensor {tensor.name!r:.120} ends beyond the file, which is truncated")


@hookimpl
def teengine_register_sources() -> list[type[ModelSource]]:
    """Register the source."""
    return [GgufSource]
