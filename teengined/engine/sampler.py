"""Draws tokens. Stateless: a draw depends on seed, choice and position alone, whatever runs beside it.

Counter-based randomness is Philox (Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011), as numpy
implements it: the same counter gives the same number on every machine, and there is no generator state to save.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from teengined.core.errors import InternalError
from teengined.core.request import TokenLogprobs
from teengined.protocol.worker_messages import PromptLogprobs, SampledToken, SequenceOpen

__all__ = ["SampleRow", "Sampler", "sample", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """Whose token is to be drawn from a row of logits, and its position."""

    sequence_id: int
    position: int


class Sampler:
    """Draws the tokens of the sequences that it was told of."""

    def __init__(self, *, vocab_size: int, package_dir: Path) -> None:
        """Start with no sequence."""
        self._vocab_size = vocab_size
        self._package_dir = package_dir
        self._opened: dict[int, SequenceOpen] = {}

    def open(self, opened: SequenceOpen) -> None:
        """Get to know a sequence."""
        self._opened[opened.sequence_id] = opened

    def close(self, sequence_id: int) -> None:
        """Forget it."""
        del self._opened[sequence_id]

    def sample(self, rows: Sequence[SampleRow], logits_WV: torch.Tensor) -> tuple[SampledToken, ...]:
        """Return one token for each row of logits (fp32, on the CPU)."""
        return tuple(self._draw(row, logits_V) for row, logits_V in zip(rows, logits_WV, strict=True))

    def prompt_logprobs(
        self, sequence_id: int, start_position: int, token_ids: Sequence[int], logits_WV: torch.Tensor
    ) -> PromptLogprobs:
        """Return the log-probability of each token in its row of logits."""
        logprobs_WV = torch.log_softmax(logits_WV, dim=-1)
        told = [
            TokenLogprobs(token_id=token_id, logprob=float(logprobs_V[token_id]))
            for token_id, logprobs_V in zip(token_ids, logprobs_WV, strict=True)
        ]
        return PromptLogprobs(sequence_id=sequence_id, start_position=start_position, logprobs=tuple(told))

    def shutdown(self) -> None:
        """Nothing runs beside the caller."""

    def _draw(self, row: SampleRow, logits_V: torch.Tensor) -> SampledToken:
        opened = self._opened[row.sequence_id]
        draw = uniform(seed=opened.sampling.seed, choice=opened.choice, position=row.position)
        sampling = opened.sampling
        token_id = sample(logits_V, temperature=sampling.temperature, top_p=sampling.top_p, draw=draw)
        return SampledToken(sequence_id=row.sequence_id, token_id=token_id)


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
