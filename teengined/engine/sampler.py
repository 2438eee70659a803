"""Draws tokens. Stateless: a draw depends on seed, choice and position alone, whatever runs beside it.

Counter-based randomness is Philox (Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011), as numpy
implements it: the same counter gives the same number on every machine, and there is no generator state to save.
"""

import numpy as np
import torch

from teengined.core.errors import InternalError

__all__ = ["sample", "uniform"]


def uniform(*, seed: int, choice: int, position: int, draw: int = 0) -> float:
    """Return the number in [0, 1) for one draw: 53 bits of Philox with the seed as key."""
    generator = np.random.Philox(key=seed, counter=np.array([draw, position, choice, 0], dtype=np.uint64))
    return (int(generator.random_raw()) >> 11) * 2.0**-53


def sample(logits_V: torch.Tensor, *, temperature: float, top_p: float, draw: float) -> int:
    """Return the token drawn from `logits` (V,) in fp32; the largest logit where `temperature` is 0.

    Top-p keeps the smallest set of most probable tokens whose probabilities reach `top_p`, ties by lower id.

    Raises:
        InternalError: a logit is not a number.
    """
    if bool(torch.isnan(logits_V).any()):
        raise InternalError("the model produced logits that are not numbers")
    if temperature == 0:
        return int(torch.argmax(logits_V))
    probabilities, ids = torch.softmax(logits_V.double() / temperature, dim=-1).sort(descending=True, stable=True)
    cumulative = probabilities.cumsum(0)
    num_kept = int(torch.searchsorted(cumulative, torch.tensor(top_p, dtype=torch.float64)).item()) + 1
    num_kept = min(num_kept, ids.numel())
    target = draw * cumulative[num_kept - 1]
    index = int(torch.searchsorted(cumulative[:num_kept].contiguous(), target, right=True).item())
    return int(ids[min(index, num_kept - 1)])
