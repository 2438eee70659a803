"""A precision strategy: how a weight matrix is stored, and how a product with it is computed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from teengined.native.library import NativeMatrix

if TYPE_CHECKING:
    import torch

__all__ = ["FIXED_ROWS", "PrecisionStrategy"]

# Rows of one product in `linear_fixed`: as many as cost a CPU little more than one.
FIXED_ROWS = 16


class PrecisionStrategy(ABC):
    """Stores and multiplies weights. Stateless and shareable. The module imports without torch.

    Legend of shape suffixes: T rows (tokens), I input features, O output features, E leading expert axis (absent).
    """

    name: ClassVar[str]
    max_storing_error: ClassVar[float] = 1 / 127
    """Largest change of a weight by storing it, as a share of its row's largest: the conformance suite holds it."""
    ends_precision: ClassVar[str] = ""
    """Strategy of the embedding and the head where this one is named for a whole model; empty: this one. They look up
    and score every token, so that a coarse strategy shows there first."""

    @abstractmethod
    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that a parameter of `shape` takes, all parts together, without alignment."""

    @abstractmethod
    def encode(self, weight: "torch.Tensor") -> Mapping[str, "torch.Tensor"]:
        """Return the parts to store for `weight` (floating point, on CPU). Key `data` is always there.

        Every part is indexed by the weight's rows: `encode(weight)[part][rows]` is `encode(weight[rows])[part]`.
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

    def linear_fixed(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Return what `linear` does, each row a function of that row and the weight alone.

        Neither the number of rows, nor a row's place among them, nor the number of threads changes a bit of it. This
        default multiplies the decoded weight with a fixed number of rows at a time, zeros where there are no more: a
        library that picks its way by the shape of the product then always picks the same.
        """
        weight_OI = self.decode(parts, x_TI.dtype)
        num_rows, num_inputs = int(x_TI.shape[0]), int(x_TI.shape[1])
        # Rows of other widths lie at unlike alignments, which libraries tell apart as well.
        width = -(-num_inputs // FIXED_ROWS) * FIXED_ROWS
        if width > num_inputs:
            narrow_OI, weight_OI = weight_OI, weight_OI.new_zeros((int(weight_OI.shape[0]), width))
            weight_OI[:, :num_inputs] = narrow_OI
        y_TO = x_TI.new_empty((num_rows, int(weight_OI.shape[0])))
        for start in range(0, num_rows, FIXED_ROWS):
            end = min(start + FIXED_ROWS, num_rows)
            block_TI = x_TI.new_zeros((FIXED_ROWS, width))
            block_TI[: end - start, :num_inputs] = x_TI[start:end]
            y_TO[start:end] = (block_TI @ weight_OI.T)[: end - start]
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(x_TI.dtype))

    def native_matrix(self, parts: Mapping[str, "torch.Tensor"]) -> NativeMatrix | None:
        """Return how the compiled kernels of whole layers read this weight (O, I), without a bias; None: they cannot.

        What is returned points into the parts' memory and keeps nothing alive. `linear` says what is meant.
        """
        return None

    def embedding(
        self, ids_T: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], dtype: "torch.dtype"
    ) -> "torch.Tensor":
        """Return rows `ids` of the stored (V, D) weight as (T, D) in `dtype`. Decodes only those rows."""
        rows = {part: tensor[ids_T] for part, tensor in parts.items()}
        return self.decode(rows, dtype)
