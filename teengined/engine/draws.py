"""Stateless draws: a number depends on seed, choice, position and draw alone, whatever runs beside it.

Counter-based randomness is Philox (Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011), as numpy
implements it: the same counter gives the same number on every machine, and there is no generator state to save.

Shapes: V = vocabulary.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["pick", "uniform"]

# Sums of blocks first, then one block's members: a cumulative sum over a whole vocabulary costs ten times as much.
_BLOCK = 256


def uniform(*, seed: int, choice: int, position: int, draw: int = 0) -> float:
    """Return the number in [0, 1) for one draw: 53 bits of Philox with the seed as key."""
    generator = np.random.Philox(key=seed, counter=np.array([draw, position, choice, 0], dtype=np.uint64))
    return (int(generator.random_raw()) >> 11) * 2.0**-53


def pick(weights_V: npt.NDArray[np.float32], share: float) -> int:
    """Return the id at `share` (in [0, 1)) of the weights' sum, in the order of ids.

    Weights are not negative, need not sum to 1, and at least one is above 0; an id of weight 0 is never returned.
    """
    masses_B = np.add.reduceat(weights_V, np.arange(0, weights_V.size, _BLOCK), dtype=np.float64)
    cumulative_B = masses_B.cumsum()
    target = share * float(cumulative_B[-1])
    block = _first_above(cumulative_B, masses_B, target)
    before = float(cumulative_B[block - 1]) if block else 0.0
    members = weights_V[block * _BLOCK : (block + 1) * _BLOCK]
    return block * _BLOCK + _first_above(members.cumsum(dtype=np.float64), members, target - before)


def _first_above(cumulative: npt.NDArray[np.float64], weights: npt.NDArray[np.floating], target: float) -> int:
    """Return the first index whose cumulative weight is above `target`; rounding must not lead past the last weight."""
    index = int(cumulative.searchsorted(target, side="right"))
    return index if index < cumulative.size else int(np.flatnonzero(weights)[-1])
