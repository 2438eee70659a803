"""What a quantisation scheme is here: it says which stored tensors make each tensor of the model, and how.

A scheme sees names, dtypes and shapes, and may read small tensors that say a shape. It unpacks nothing before it is
asked for, and then one tensor: its stored parts and its values are all that is in memory.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from teengined.core.errors import SourceError
from teengined_plugins.sources.safetensors_file import FileTensor

if TYPE_CHECKING:
    import torch

__all__ = ["BETTER_SOURCE", "Parts", "QuantisedTensor", "Scheme", "StoredTensors", "unsupported"]

Parts = Mapping[str, "torch.Tensor"]
"""Role -> stored tensor."""

BETTER_SOURCE = "use the bf16, fp16 or fp32 checkpoint that it was made from, or a GGUF file"
# A state of a few fields as JSON, a shape.
_MAX_SMALL_BYTES = 64 << 10
# What no weight is stored in as it is.
_PACKED_DTYPES = frozenset({"I32", "I16", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedTensor:
    """A tensor of the model and what it is made of."""

    name: str
    dtype: str
    """For people, and so that `auto` sees a block format: no name that safetensors has."""
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    """Role -> name in the checkpoint."""
    unpack: Callable[[Parts], "torch.Tensor"]

    def read(self, read: Callable[[str], "torch.Tensor"]) -> "torch.Tensor":
        """Return its values in floating point.

        Raises:
            SourceError: its parts do not fit together.
        """
        try:
            return self.unpack({role: read(stored) for role, stored in self.parts.items()}).reshape(self.shape)
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise SourceError(f"tensor {self.name}: its {self.dtype} parts do not fit together: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensors:
    """What the checkpoint holds, with those counted that a scheme has used."""

    tensors: Mapping[str, FileTensor]
    read: Callable[[str], "torch.Tensor"]
    used: set[str] = field(default_factory=set[str])

    def ending(self, suffix: str, *roles: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield each stem with a tensor named stem + `suffix`, and its parts: `suffix` and those of `roles` there.

        The parts count as used. Order is the checkpoint's.
        """
        for name in [name for name in self.tensors if name.endswith(suffix) and name not in self.used]:
            stem = name.removesuffix(suffix)
            parts = {role: stem + role for role in (suffix, *roles) if stem + role in self.tensors}
            self.used.update(parts.values())
            yield stem, parts

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a stored tensor's shape."""
        return self.tensors[name].shape

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of a stored matrix.

        Raises:
            SourceError: it is none.
        """
        shape = self.tensors[name].shape
        if len(shape) != 2:
            raise SourceError(f"tensor {name}: its shape {list(shape)} is not that of a packed matrix")
        return shape[0], shape[1]

    def small(self, name: str) -> "torch.Tensor":
        """Read a tensor that says something about another.

        Raises:
            SourceError: it is too large to be one.
        """
        if self.tensors[name].size_bytes > _MAX_SMALL_BYTES:
            raise SourceError(f"tensor {name}: its {self.tensors[name].size_bytes} bytes are too many for what it is")
        return self.read(name)

    def refuse_left(self, method: str) -> None:
        """Refuse what looks quantised and was not used, so that no packed matrix is taken for values.

        Raises:
            SourceError: names the first.
        """
        for name, tensor in self.tensors.items():
            if tensor.dtype in _PACKED_DTYPES and len(tensor.shape) > 1 and name not in self.used:
                raise SourceError(
                    f"tensor {name}: it is stored as {tensor.dtype}, and nothing beside it says how "
                    f"{method} quantised it",
                    hint=BETTER_SOURCE,
                )


Scheme = Callable[[Mapping[str, Any], StoredTensors], list[QuantisedTensor]]
"""The checkpoint's `quantization_config` and tensors -> the tensors that were quantised."""


def unsupported(method: str, what: str) -> SourceError:
    """Return the error for a variation that is not read."""
    return SourceError(f"its weights are quantised with {method} in a way that is not read: {what}", hint=BETTER_SOURCE)
