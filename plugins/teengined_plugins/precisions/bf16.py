"""Weights as bfloat16: the range of fp32 with eight bits of precision, and what most models were trained in."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined.native.bf16_linear import bf16_linear, has_bf16_linear
from teengined.native.library import NativeMatrix
from teengined_plugins.precisions.kept_choices import kept_choices
from teengined_plugins.precisions.kernel_choice import KernelChoice, rows_bucket
from teengined_plugins.precisions.plain import PlainPrecision

if TYPE_CHECKING:
    import torch

__all__ = ["Bf16Precision"]

_AGREEMENT = 4e-2


class Bf16Precision(PlainPrecision):
    """Stores bf16."""

    name = "bf16"
    dtype_name = "bfloat16"
    element_bytes = 2

    def __init__(self, choice: KernelChoice | None = None) -> None:
        """`choice` remembers which kernel is fastest; None: in this process, and what it measures for later ones."""
        self.choice = choice or KernelChoice(kept=kept_choices())

    def linear(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply with the kernel that is fastest here for these rows and shape."""
        import torch

        weight_OI = parts["data"]
        if not _fits_native(x_TI, weight_OI):
            return super().linear(x_TI, parts, bias_O)
        x_TI = x_TI.contiguous()
        kernels = {"stock": torch.nn.functional.linear, "native": bf16_linear}
        key = ("bf16", rows_bucket(x_TI.shape[0]), weight_OI.shape, torch.get_num_threads())
        winner = self.choice.winner(key)
        if winner is not None:
            y_TO = kernels[winner](x_TI, weight_OI)
        else:
            candidates = {name: partial(kernel, x_TI, weight_OI) for name, kernel in kernels.items()}
            y_TO = self.choice.run(key, candidates, agrees=_agrees, synchronize=_nothing)
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(y_TO.dtype))

    def linear_fixed(
        self, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Multiply with the kernel whose rows are summed each by itself, or as the base class does."""
        if not _fits_native(x_TI, parts["data"]):
            return super().linear_fixed(x_TI, parts, bias_O)
        y_TO = bf16_linear(x_TI.contiguous(), parts["data"], is_fixed=True)
        return y_TO if bias_O is None else y_TO.add_(bias_O.to(y_TO.dtype))

    def native_matrix(self, parts: Mapping[str, "torch.Tensor"]) -> NativeMatrix | None:
        """Return the weight as it lies."""
        weight_OI = parts["data"]
        if weight_OI.device.type != "cpu" or weight_OI.ndim != 2 or not weight_OI.is_contiguous():
            return None
        num_outputs, num_inputs = weight_OI.shape
        return NativeMatrix(weight_OI.data_ptr(), None, None, None, None, num_outputs, num_inputs, NativeMatrix.BF16)


def _fits_native(x_TI: "torch.Tensor", weight_OI: "torch.Tensor") -> bool:
    import torch

    is_bf16 = x_TI.dtype == weight_OI.dtype == torch.bfloat16 and x_TI.device.type == "cpu"
    return is_bf16 and weight_OI.is_contiguous() and x_TI.shape[0] > 0 and has_bf16_linear()


def _agrees(reference: "torch.Tensor", other: "torch.Tensor") -> bool:
    """Two kernels may differ by their rounding, not by more; relative to the product's largest element."""
    largest = float(reference.abs().max())
    return not largest > 0 or float((reference - other).abs().max()) <= _AGREEMENT * largest


def _nothing() -> None:
    """Wait for nothing: a CPU's kernels are done when they return."""


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the bf16 strategy."""
    return [Bf16Precision]
