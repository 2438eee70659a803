"""How long products take: each precision strategy's own `linear`, on weights that are read from memory every time.

A weight that stays in a cache would make a lone stream look several times faster than any model is. So a pass goes
through a set of matrices like those of a decoder layer, in as many copies as exceed the caches together.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from teengined.core.device import MEASURED_TOKENS, ComputePoint
from teengined.interfaces.driver import Device
from teengined.interfaces.precision import PrecisionStrategy

__all__ = ["MeasuredProducts", "PassLimits", "fastest_compute_dtype", "last_level_cache_bytes", "measure_products"]

# (outputs, inputs) of attention output, feed-forward up and down: the three shapes on which kernels differ.
_SHAPES = ((2048, 2048), (8192, 2048), (2048, 8192))
_PROBE = _SHAPES[0]
# Unknown caches, those of accelerators among them, are taken for this.
_DEFAULT_CACHE_BYTES = 64 << 20
_CACHE_FACTOR = 3
_MAX_SET_BYTES = 512 << 20
# Another dtype than bf16 must be this much faster to be preferred: bf16 keeps the range of what models are trained in.
_CLEAR_WIN = 0.9

# From here on products are bound by arithmetic, whose speed two of the shapes show as well as three.
_ARITHMETIC_ROWS = 64

Parts = Mapping[str, torch.Tensor]
Shape = tuple[int, int]
Work = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLimits:
    """Bounds on the time of one (precision, rows)."""

    enough_seconds: float = 0.2
    """Passes are repeated until they took this long together."""
    min_passes: int = 3
    max_passes: int = 7
    max_pass_seconds: float = 0.6
    """A pass expected to take longer is not run: the cost is taken from one small product, or from fewer rows."""


@dataclass(frozen=True, slots=True)
class MeasuredProducts:
    """Seconds per parameter of one precision, by rows."""

    precision: str
    seconds_per_parameter: Mapping[int, float]

    def points(self) -> tuple[ComputePoint, ...]:
        """Return them as a profile keeps them."""
        return tuple(
            ComputePoint(precision=self.precision, num_tokens=rows, seconds_per_parameter=seconds)
            for rows, seconds in self.seconds_per_parameter.items()
        )


def measure_products(
    device: Device, strategy: PrecisionStrategy, x_dtype: torch.dtype, limits: PassLimits
) -> MeasuredProducts:
    """Time `strategy.linear` at each row count of MEASURED_TOKENS, fewest rows first.

    Raises:
        OutOfDeviceMemory: the device has no room for the matrices.
    """
    with torch.inference_mode():
        weights = _WeightSet(device, strategy)
        try:
            return MeasuredProducts(strategy.name, _by_rows(device, strategy, weights, x_dtype, limits))
        finally:
            weights.free()


def fastest_compute_dtype(measured: Mapping[str, MeasuredProducts]) -> str:
    """Return which of fp32, bf16 and fp16 multiplies fastest over all row counts; bf16 unless another clearly wins.

    Raises:
        KeyError: no floating-point strategy was measured.
    """
    costs = {
        name: statistics.geometric_mean(measured[name].seconds_per_parameter.values())
        for name in ("bf16", "fp32", "fp16")
        if name in measured
    }
    if not costs:
        raise KeyError("fp32")
    best = min(costs, key=lambda name: costs[name])
    return best if costs[best] < costs.get("bf16", float("inf")) * _CLEAR_WIN else "bf16"


def last_level_cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of this machine's largest CPU cache, or a guess where the kernel does not tell."""
    sizes = [_cache_size(path.read_text()) for path in caches.glob("index*/size")]
    return max(sizes, default=_DEFAULT_CACHE_BYTES)


def _cache_size(text: str) -> int:
    factors = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number = text.strip().rstrip("KMG")
    return int(number) * factors.get(text.strip()[-1:], 1) if number.isdigit() else 0


class _WeightSet:
    """Copies of the encoded matrices in buffers of the device, as a stage has them."""

    def __init__(self, device: Device, strategy: PrecisionStrategy) -> None:
        self._device = device
        self._buffers: list[torch.Tensor] = []
        cache_bytes = last_level_cache_bytes() if device.torch_device.type == "cpu" else _DEFAULT_CACHE_BYTES
        set_bytes = sum(strategy.stored_bytes(shape) for shape in _SHAPES)
        wanted_bytes = min(_CACHE_FACTOR * cache_bytes, _MAX_SET_BYTES)
        num_copies = -(-wanted_bytes // set_bytes)
        encoded = [strategy.encode(_noise(shape)) for shape in _SHAPES]
        self.copies = [[self._placed(parts) for parts in encoded] for _ in range(num_copies)]

    def free(self) -> None:
        """Give the buffers back."""
        self.copies.clear()
        for buffer in self._buffers:
            self._device.free(buffer)
        self._buffers.clear()

    def _placed(self, parts: Parts) -> Parts:
        return {name: self._placed_part(part) for name, part in parts.items()}

    def _placed_part(self, part: torch.Tensor) -> torch.Tensor:
        buffer = self._device.allocate(part.nbytes)
        self._buffers.append(buffer)
        placed = buffer.view(part.dtype).view(part.shape)
        placed.copy_(part)
        return placed


def _by_rows(
    device: Device, strategy: PrecisionStrategy, weights: _WeightSet, x_dtype: torch.dtype, limits: PassLimits
) -> dict[int, float]:
    costs: dict[int, float] = {}
    for rows in MEASURED_TOKENS:
        fewer = max(costs, default=0)
        if fewer and costs[fewer] * _num_parameters(_PROBE) * rows / fewer > limits.max_pass_seconds:
            # Even the small product would take too long: so slow a kernel is bound by arithmetic, which rows multiply.
            costs[rows] = costs[fewer] * rows / fewer
            continue
        xs_TI = {
            inputs: _noise((rows, inputs)).to(device.torch_device, x_dtype)
            for inputs in {shape[1] for shape in _SHAPES}
        }

        def multiply(shapes: Sequence[Shape], matrices: Sequence[Parts], xs_TI: Mapping[int, torch.Tensor]) -> None:
            for (_, inputs), parts in zip(shapes, matrices, strict=False):
                strategy.linear(xs_TI[inputs], parts, None)

        shapes = _SHAPES if rows < _ARITHMETIC_ROWS else _SHAPES[:2]
        passes = [partial(multiply, shapes, matrices, xs_TI) for matrices in weights.copies]
        probe = partial(multiply, (_PROBE,), weights.copies[0], xs_TI)
        costs[rows] = _cost(partial(_timed, device), probe, passes, _num_parameters(*shapes), limits)
    return costs


def _cost(
    timed: Callable[[Work], float], probe: Work, passes: Sequence[Work], pass_parameters: int, limits: PassLimits
) -> float:
    """Return seconds per parameter: the median of passes, or the small product's where a pass would take too long."""
    probe()  # builds what the library keeps for a shape, and lets the strategy choose its kernel
    # The machine is never quite idle, and one slow moment must not pass for a kernel that crawls.
    probe_cost = min(timed(probe) for _ in range(limits.min_passes)) / _num_parameters(_PROBE)
    if probe_cost * pass_parameters > limits.max_pass_seconds:
        return probe_cost
    passes[0]()
    seconds: list[float] = []
    for one_pass in itertools.cycle(passes):
        seconds.append(timed(one_pass))
        if len(seconds) >= limits.max_passes or (
            len(seconds) >= limits.min_passes and sum(seconds) > limits.enough_seconds
        ):
            break
    return statistics.median(seconds) / pass_parameters


def _noise(shape: Shape) -> torch.Tensor:
    """Return numbers between -0.1 and 0.1. They repeat, which no kernel notices and is made sooner."""
    num_elements = math.prod(shape)
    block = torch.empty(min(num_elements, 1 << 18)).uniform_(-0.1, 0.1)
    return block.repeat(-(-num_elements // block.numel()))[:num_elements].view(shape)


def _num_parameters(*shapes: Shape) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _timed(device: Device, work: Work) -> float:
    device.synchronize()
    start = time.perf_counter()
    work()
    device.synchronize()
    return time.perf_counter() - start
