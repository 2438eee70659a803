"""The tokens that a sequence has seen, and what that costs them in the next draw."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from teengined.core.sampling import SamplingParams

__all__ = ["SeenTokens"]

_FIRST_CAPACITY = 64


class SeenTokens:
    """Each token of prompt or answer once, with how often the answer has it."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Fold the tokens known already. What comes out of `penalise` does not depend on when a token was folded."""
        self._places: dict[int, int] = {}
        self._ids = np.empty(_FIRST_CAPACITY, dtype=np.int64)
        self._counts = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        for token_id in prompt:
            self._place(token_id)
        for token_id in answer:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Fold a token of the answer."""
        self._counts[self._place(token_id)] += 1

    def penalise(self, logits_V: npt.NDArray[np.float32], params: SamplingParams) -> None:
        """Change the logits of seen tokens in place: repetition first, then presence and frequency.

        Repetition (Keskar and others, "CTRL", 2019) divides positive and multiplies negative logits, so that a penalty
        above 1 makes a seen token less probable whatever its sign.
        """
        num_seen = len(self._places)
        ids, counts = self._ids[:num_seen], self._counts[:num_seen]
        seen = logits_V[ids]
        repetition = params.repetition_penalty
        with np.errstate(over="ignore"):  # the sampler refuses what is infinite
            seen = np.where(seen > 0, seen / repetition, seen * repetition)
        seen -= (params.presence_penalty * (counts > 0) + params.frequency_penalty * counts).astype(np.float32)
        logits_V[ids] = seen

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == self._ids.size:
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        return place
