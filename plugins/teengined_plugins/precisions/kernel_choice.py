"""Several ways to compute the same product, and the fastest of them for each shape, found by measuring.

Which kernel wins depends on rows, shape, dtype and processor in ways that no rule of ours foresaw; a few products at
the first use of a shape tell. The choice is kept for the life of the process.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Kernel", "KernelChoice"]

Kernel = Callable[["torch.Tensor", Mapping[str, "torch.Tensor"], "torch.Tensor | None"], "torch.Tensor"]

# Shapes of one process: a few for each model times a few row counts. Beyond this the first kernel is used unmeasured.
_MAX_CHOICES = 4096
_NUM_TRIALS = 3


class KernelChoice:
    """Runs products through the fastest kernel known for their shape. Safe to share between threads."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        """Take kernels that agree within the dtype's tolerance."""
        self._kernels = dict(kernels)
        self._chosen: dict[tuple[object, ...], Kernel] = {}

    def run(
        self,
        x_TI: "torch.Tensor",
        parts: Mapping[str, "torch.Tensor"],
        bias_O: "torch.Tensor | None",
        names: tuple[str, ...],
    ) -> "torch.Tensor":
        """Return the product by the best of the kernels `names`, measuring them at the first use of a shape."""
        if len(names) == 1:
            return self._kernels[names[0]](x_TI, parts, bias_O)
        key = (_row_class(x_TI.shape[0]), parts["data"].shape, x_TI.dtype, x_TI.device)
        kernel = self._chosen.get(key)
        if kernel is None:
            kernel = self._kernels[names[0]]
            if len(self._chosen) < _MAX_CHOICES:
                kernel = min((self._kernels[name] for name in names), key=lambda k: _seconds(k, x_TI, parts, bias_O))
                self._chosen[key] = kernel
        return kernel(x_TI, parts, bias_O)


def _row_class(num_rows: int) -> int:
    """Return the power of two at or above: row counts that close behave alike."""
    return 1 << (num_rows - 1).bit_length()


def _seconds(
    kernel: Kernel, x_TI: "torch.Tensor", parts: Mapping[str, "torch.Tensor"], bias_O: "torch.Tensor | None"
) -> float:
    best = float("inf")
    for _ in range(_NUM_TRIALS):
        start = time.perf_counter()
        kernel(x_TI, parts, bias_O)
        best = min(best, time.perf_counter() - start)
    return best
