"""A model source: reads one form of checkpoint and offers it under transformers' names, tensor by tensor."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "ModelSource", "SourceTensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """A tensor that the checkpoint holds, known from headers only."""

    name: str
    """As the checkpoint writes it, already mapped to Hugging Face checkpoint names."""
    dtype: str
    """As safetensors writes it, or the block format's name (`Q4_1`)."""
    shape: tuple[int, ...]


class Checkpoint(ABC):
    """An opened checkpoint. Everything in it is untrusted: sizes, names and offsets are checked before use."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """`config.json` as a mapping, with `model_type`."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Where it came from, for people; no path of this machine."""

    @property
    def fingerprint(self) -> str:
        """Changes when the checkpoint's content does; empty where that cannot be told, so nothing is resumed."""
        return ""

    @abstractmethod
    def tensors(self) -> tuple[SourceTensor, ...]:
        """List what is there.

        Raises:
            SourceError: a header lies, tensors overlap, a file is truncated or points out of its directory.
        """

    @abstractmethod
    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor on the CPU in floating point. Memory for this tensor only."""

    @abstractmethod
    def write_tokenizer(self, directory: Path) -> Iterable[str]:
        """Write tokenizer.json and its companions (and chat template, generation config) and return their names.

        Raises:
            SourceError: there is no tokenizer, or it cannot be expressed as tokenizer.json.
        """

    @abstractmethod
    def close(self) -> None:
        """Release files. Safe to call twice."""


class ModelSource(ABC):
    """Recognises references and opens them. The module imports without torch."""

    name: ClassVar[str]

    @abstractmethod
    def matches(self, reference: str) -> bool:
        """Say whether `reference` (a path or a hub id) is of this form. Cheap; opens no network."""

    @abstractmethod
    def open(self, reference: str) -> Checkpoint:
        """Open it.

        Raises:
            SourceError: it is of this form but unusable; says what and how to mend it.
            HubUnreachable: the reference is remote and the remote does not answer.
        """
