"""Chooses among kernels that compute the same product, by measuring them where they run.

Which kernel is fastest depends on the machine, the shape, the rows and the dtype, and no table written in advance is
right for long. The first call of a kind times the candidates on its own operands; later calls of that kind look the
winner up, and with a memory (`kept_choices.py`) so do later processes. Keys never hold addresses: a weight may lie in a
buffer that is reused for the next one.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

__all__ = ["MAX_REMEMBERED", "KeptWinners", "Kernel", "KernelChoice", "kernels_agree", "rows_bucket", "waiting_for"]

Kernel = Callable[[], "torch.Tensor"]

# Kinds of calls: a model has about ten shapes, each at ten buckets of rows. Beyond this the oldest are measured again.
MAX_REMEMBERED = 4096
# A candidate must be this much faster than the one before it: the machine is never quite idle.
_CLEAR_WIN = 0.9
# Rounds of measuring, fewer where they take long: the first use of a shape holds up a request.
_NUM_ROUNDS = 5
_ENOUGH_SECONDS = 0.03
# Once that much time is spent, who takes so many times as long as the fastest is not measured again.
_SURE_SECONDS, _SURELY_SLOWER = 0.01, 1.5
_MAX_BUCKET = 512
# Two kernels may differ by their rounding, not by more; relative to the product's largest element.
_AGREEMENT = {"float32": 1e-4, "bfloat16": 4e-2, "float16": 5e-3}


def rows_bucket(num_rows: int) -> int:
    """Return the power of two at or above `num_rows`, at most 512: how kinds of calls are told apart by rows."""
    return min(_MAX_BUCKET, 1 << max(0, num_rows - 1).bit_length())


def kernels_agree(reference: "torch.Tensor", other: "torch.Tensor") -> bool:
    """Say whether two kernels' products of one dtype differ by no more than rounding."""
    tolerance = _AGREEMENT[str(reference.dtype).removeprefix("torch.")]
    largest = float(reference.abs().max())
    return not largest > 0 or float((reference - other).abs().max()) <= tolerance * largest


def waiting_for(device: "torch.device") -> Callable[[], None]:
    """Return what waits for the device's kernels; a CPU's are done when they return."""
    import torch

    return _nothing if device.type == "cpu" else partial(torch.accelerator.synchronize, device)


def _nothing() -> None:
    """Wait for nothing."""


class KeptWinners(Protocol):
    """What outlives a process of its measurements. Neither method fails."""

    def winner(self, key: Hashable) -> str | None:
        """Return the kernel that is to be used for `key` without measuring; None: measure."""
        ...

    def keep(self, key: Hashable, winner: str) -> None:
        """Add what was measured for `key` just now."""
        ...


class KernelChoice:
    """The winners of one process, by kind of call."""

    def __init__(
        self,
        *,
        measures: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        kept: KeptWinners | None = None,
    ) -> None:
        """With `measures` false the first candidate that is offered is always taken. `kept` None: nothing outlives."""
        self._measures = measures
        self._clock = clock
        self._kept = kept
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
        """Return the product from the kernel that won for `key`, measuring on the first call unless a winner is kept.

        The first kernel is the reference: it must work everywhere. Others drop out where they raise or where
        `agrees(reference, theirs)` is false. `synchronize` waits for the device.
        """
        winner = self._winners.get(key)
        if winner is not None and winner in kernels:
            return kernels[winner]()
        reference_name = next(iter(kernels))
        if len(kernels) == 1 or not self._measures:
            return kernels[reference_name]()
        product = self._by_kept_winner(key, kernels)
        if product is not None:
            return product
        reference, reference_seconds = self._timed(kernels[reference_name], synchronize)
        best_seconds = {reference_name: reference_seconds}
        for name in kernels:
            if name != reference_name:
                seconds = self._timed_if_sound(kernels[name], reference, agrees, synchronize)
                if seconds is not None:
                    best_seconds[name] = seconds
        winner = self._fastest(kernels, best_seconds, synchronize)
        self._remember(key, winner)
        if self._kept is not None:
            self._kept.keep(key, winner)
        return reference if winner == reference_name else kernels[winner]()

    def winner(self, key: Hashable) -> str | None:
        """Return the kernel that won for `key`; None before the first `run` of that kind."""
        return self._winners.get(key)

    def winners(self) -> Mapping[Hashable, str]:
        """Return what was chosen so far, for people who ask why."""
        return dict(self._winners)

    def _by_kept_winner(self, key: Hashable, kernels: Mapping[str, Kernel]) -> "torch.Tensor | None":
        """Return the product from the kernel that an earlier process chose; None where it must be measured.

        That kernel agreed with the reference there: of these sources, on this processor and with this torch.
        """
        winner = None if self._kept is None else self._kept.winner(key)
        if winner is None or winner not in kernels:
            return None
        try:
            product = kernels[winner]()
        except RuntimeError as error:  # measuring drops it out, or shows that the reference fails as well
            logger.debug("a kept kernel fails, and is measured anew: %s", error)
            return None
        self._remember(key, winner)
        return product

    def _timed(self, kernel: Kernel, synchronize: Callable[[], None]) -> tuple["torch.Tensor", float]:
        synchronize()
        start = self._clock()
        product = kernel()
        synchronize()
        return product, self._clock() - start

    def _timed_if_sound(
        self,
        kernel: Kernel,
        reference: "torch.Tensor",
        agrees: Callable[["torch.Tensor", "torch.Tensor"], bool],
        synchronize: Callable[[], None],
    ) -> float | None:
        try:
            product, seconds = self._timed(kernel, synchronize)
            return seconds if agrees(reference, product) else None
        except RuntimeError as error:  # this build or device lacks the kernel, which is what trying is for
            logger.debug("a kernel drops out: %s", error)
            return None

    def _fastest(
        self, kernels: Mapping[str, Kernel], best_seconds: dict[str, float], synchronize: Callable[[], None]
    ) -> str:
        """Return the winner among the sound ones, whose first times are known, after more rounds if they are short."""
        # In turns, so that a moment in which the machine was busy elsewhere hits all alike; the best run counts.
        spent_seconds = sum(best_seconds.values())
        for _ in range(_NUM_ROUNDS):
            if spent_seconds > _SURE_SECONDS:
                slowest_seconds = _SURELY_SLOWER * min(best_seconds.values())
                best_seconds = {name: seconds for name, seconds in best_seconds.items() if seconds <= slowest_seconds}
            if spent_seconds > _ENOUGH_SECONDS or len(best_seconds) == 1:
                break
            for name in best_seconds:
                _, elapsed_seconds = self._timed(kernels[name], synchronize)
                best_seconds[name] = min(best_seconds[name], elapsed_seconds)
                spent_seconds += elapsed_seconds
        winner, *others = best_seconds
        for name in others:
            if best_seconds[name] < best_seconds[winner] * _CLEAR_WIN:
                winner = name
        return winner

    def _remember(self, key: Hashable, winner: str) -> None:
        with self._lock:
            while len(self._winners) >= MAX_REMEMBERED:
                del self._winners[next(iter(self._winners))]
            self._winners[key] = winner
