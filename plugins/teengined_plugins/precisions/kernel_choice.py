"""Chooses among kernels that compute the same product, by measuring them where they run.

Which kernel is fastest depends on the machine, the shape, the rows and the dtype, and no table written in advance is
right for long. The first call of a kind times the candidates on its own operands; later calls of that kind look the
winner up. Keys never hold addresses: a weight may lie in a buffer that is reused for the next one.
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_REMEMBERED", "Kernel", "KernelChoice", "rows_bucket"]

Kernel = Callable[[], "torch.Tensor"]

# Kinds of calls: a model has about ten shapes, each at ten buckets of rows. Beyond this the oldest are measured again.
MAX_REMEMBERED = 4096
# A candidate must be this much faster than the one before it: the machine is never quite idle.
_CLEAR_WIN = 0.9
# One run that took this long needs no repetition to be trusted.
_LONG_RUN_SECONDS = 0.02
_NUM_REPEATS = 3
_MAX_BUCKET = 512


def rows_bucket(num_rows: int) -> int:
    """Return the power of two at or above `num_rows`, at most 512: how kinds of calls are told apart by rows."""
    return min(_MAX_BUCKET, 1 << max(0, num_rows - 1).bit_length())


class KernelChoice:
    """The winners of one process, by kind of call."""

    def __init__(self, *, measures: bool = True, clock: Callable[[], float] = time.perf_counter) -> None:
        """With `measures` false the first candidate that is offered is always taken."""
        self._measures = measures
        self._clock = clock
        self._winners: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def run(
        self,
        key: Hashable,
        kernels: Mapping[str, Kernel],
        *,
        agrees: Callable[["torch.Tensor", "torch.Tensor"], bool],
        synchronize: Callable[[], None],
    ) -> "torch.Tensor":
        """Return the product from the kernel that won for `key`, measuring on the first call.

        The first kernel is the reference: it must work everywhere. Others drop out where they raise or where
        `agrees(reference, theirs)` is false. `synchronize` waits for the device.
        """
        winner = self._winners.get(key)
        if winner is not None and winner in kernels:
            return kernels[winner]()
        reference_name = next(iter(kernels))
        if len(kernels) == 1 or not self._measures:
            return kernels[reference_name]()
        winner, product = self._measure(kernels, agrees, synchronize)
        self._remember(key, winner)
        return product

    def winners(self) -> Mapping[Hashable, str]:
        """Return what was chosen so far, for people who ask why."""
        return dict(self._winners)

    def _measure(
        self,
        kernels: Mapping[str, Kernel],
        agrees: Callable[["torch.Tensor", "torch.Tensor"], bool],
        synchronize: Callable[[], None],
    ) -> tuple[str, "torch.Tensor"]:
        reference: torch.Tensor | None = None
        best_name, best_product, best_seconds = "", None, float("inf")
        for name, kernel in kernels.items():
            try:
                seconds, product = self._time(kernel, synchronize)
            except (RuntimeError, NotImplementedError):
                if reference is None:
                    raise
                continue  # this build or device lacks the kernel, which is what measuring is for
            if reference is None:
                reference = product
            elif not agrees(reference, product):
                continue
            if seconds < best_seconds * _CLEAR_WIN:
                best_name, best_product, best_seconds = name, product, seconds
        assert best_product is not None
        return best_name, best_product

    def _time(self, kernel: Kernel, synchronize: Callable[[], None]) -> tuple[float, "torch.Tensor"]:
        # The first run also builds what the library keeps for a shape; it counts only where it was long anyway.
        seconds, product = self._time_once(kernel, synchronize)
        if seconds > _LONG_RUN_SECONDS:
            return seconds, product
        return min(self._time_once(kernel, synchronize)[0] for _ in range(_NUM_REPEATS)), product

    def _time_once(self, kernel: Kernel, synchronize: Callable[[], None]) -> tuple[float, "torch.Tensor"]:
        synchronize()
        start = self._clock()
        product = kernel()
        synchronize()
        return self._clock() - start, product

    def _remember(self, key: Hashable, winner: str) -> None:
        with self._lock:
            while len(self._winners) >= MAX_REMEMBERED:
                del self._winners[next(iter(self._winners))]
            self._winners[key] = winner
