"""What a `.pt` file may hold once it is read: plain values, tensors with their places, and things of no interest.

Torch-free, as everything here is: the process that reads these files must be small and able to do little.
"""

from dataclasses import dataclass
from math import prod

from teengined.core.dtypes import DTYPE_BYTES

__all__ = ["MAX_DIMENSIONS", "Inert", "RefusedFile", "Storage", "TensorInStorage", "TensorRange"]

MAX_DIMENSIONS = 8


class RefusedFile(ValueError):
    """A file is damaged, or holds what is not read. The text is a clause about the file, without its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inert:
    """Stands for an object of a known class whose content nobody needs. It has no behaviour."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A run of elements: one entry of the archive."""

    key: str
    dtype: str
    """Empty: untyped, and `num_elements` counts bytes."""
    num_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInStorage:
    """A tensor as the pickle describes it. `offset_elements` is from the start of its storage."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset_elements: int

    @property
    def in_order(self) -> bool:
        """Say whether its elements lie side by side, last axis fastest."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return prod(self.shape) == 0
            step *= size
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """A tensor as a range of its file: what the reading process hands out."""

    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    """From the start of the file."""
    in_order: bool = True
    """False: its elements do not lie side by side, and the range is not its content."""

    def __post_init__(self) -> None:
        """Hold it to what a tensor can be."""
        if self.dtype not in DTYPE_BYTES or len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"no tensor has dtype {self.dtype!r:.40} and {len(self.shape)} dimensions")
        if self.offset_bytes < 0 or any(size < 0 for size in self.shape):
            raise ValueError("offset and sizes of a tensor are not negative")

    @property
    def num_elements(self) -> int:
        """How many values it has."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return self.num_elements * DTYPE_BYTES[self.dtype]
