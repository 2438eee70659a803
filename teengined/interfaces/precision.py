"""A precision strategy: how a weight matrix is stored, and how a product with it is computed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

__all__ = ["PrecisionStrategy"]


class PrecisionStrategy(ABC):
    """Stores and multiplies weights. Stateless and shareable. The module imports without torch.

    Legend of shape suffixes: T rows (tokens), I input features, O output features, E leading expert axis (absent).
    """

    name: ClassVar[str]

    @abstractmethod
    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that a parameter of `shape` takes, all parts together, without alignment."""

    @abstractmethod
    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the parts to store for `weight` (floating point, on CPU). Key `data` is always there.

        Vectors (one dimension) are stored unquantised by every strategy, in its compute dtype.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "torch.Tensor":
        """Return the weight that the parts stand for, in `dtype`, on the parts' device."""

    @abstractmethod
    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Return `x @ weight.T + bias` as (T, O) in `x`'s dtype, for a weight stored as (O, I).

        May pick any kernel for the shape, rows, dtype and device; must agree with `decode` within the dtype's
        tolerance, and with itself for every T within the conformance suite's bounds.
        """

    def embedding(
        self, ids_T: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype"
    ) -> "torch.Tensor":
        """Return rows `ids` of the stored (V, D) weight as (T, D) in `dtype`. Decodes only those rows."""
        rows = {part: tensor[ids_T] for part, tensor in parts.items()}
        return self.decode(rows, dtype)
