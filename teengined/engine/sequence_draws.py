"""What one open sequence does to its logits before a draw, and what it must remember for that.

Shapes: V = vocabulary.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from teengined.core.errors import RequestError
from teengined.engine.grammar_masks import GrammarMasks
from teengined.engine.penalties import SeenTokens
from teengined.protocol.worker_messages import SequenceOpen

__all__ = ["SequenceDraws"]

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class SequenceDraws:
    """A fold over a sequence's tokens: from `SequenceOpen.history`, then from each draw."""

    def __init__(self, opened: SequenceOpen, vocab_size: int, masks: GrammarMasks) -> None:
        """Fold what is known already; a grammar begins to compile."""
        self.params = opened.sampling
        self.choice = opened.choice
        self._vocab_size = vocab_size
        self._num_prompt_tokens = opened.num_prompt_tokens
        self._seen = _seen_tokens(opened)
        self._bias = (_ids(token_id for token_id, _ in self.params.logit_bias), _biases(opened))
        self._allowed = _ids(self.params.allowed_token_ids)
        self._banned = _ids(self.params.banned_token_ids)
        ends = (*opened.eos_token_ids, *self.params.stop_token_ids)
        self._ends = _ids(token_id for token_id in ends if token_id < vocab_size)
        self._grammar = masks.open(opened) if self.params.grammar is not None else None
        self._problem = self._unknown_id()
        listed = (self._bias[0], self._allowed, self._banned)
        self._is_plain = self._seen is None and self._grammar is None and not any(ids.size for ids in listed)

    def adjusted(self, position: int, raw_V: Logits) -> Logits:
        """Return the logits of the token at `position` after all that comes before temperature.

        The array itself where nothing changes it. -inf is what must not be drawn.

        Raises:
            RequestError: a listed id is outside the vocabulary, or the grammar cannot be followed.
            PackageError: a grammar needs the tokenizer, which cannot be read.
            DeadlineExceeded: the grammar took too long.
        """
        if self._problem:
            raise RequestError(self._problem)
        too_early = position - self._num_prompt_tokens < self.params.min_tokens
        if self._is_plain and not (too_early and self._ends.size):
            return raw_V
        logits_V = raw_V.copy()
        if self._seen is not None:
            self._seen.penalise(logits_V, self.params)
        np.add.at(logits_V, *self._bias)
        logits_V = self._only_allowed(logits_V)
        logits_V[self._banned] = -np.inf
        if too_early:
            logits_V[self._ends] = -np.inf
        if self._grammar is not None:
            logits_V[~self._grammar.allowed()] = -np.inf
        return logits_V

    def fold(self, token_id: int) -> None:
        """Take the token that was drawn."""
        if self._seen is not None:
            self._seen.add(token_id)
        if self._grammar is not None:
            self._grammar.fold(token_id)

    def close(self) -> None:
        """Let go of what is computed ahead."""
        if self._grammar is not None:
            self._grammar.close()

    def _only_allowed(self, logits_V: Logits) -> Logits:
        if not self._allowed.size:
            return logits_V
        only_V = np.full_like(logits_V, -np.inf)
        only_V[self._allowed] = logits_V[self._allowed]
        return only_V

    def _unknown_id(self) -> str:
        """Return what is wrong with the listed ids, empty if nothing is. Only here is the vocabulary's size known."""
        names = ("logit_bias", "allowed_token_ids", "banned_token_ids")
        for name, ids in zip(names, (self._bias[0], self._allowed, self._banned), strict=True):
            if ids.size and ids.max() >= self._vocab_size:
                return f"{name} must have token ids between 0 and {self._vocab_size - 1}, got {ids.max()}"
        return ""


def _seen_tokens(opened: SequenceOpen) -> SeenTokens | None:
    if not opened.sampling.has_penalties:
        return None
    num_prompt = opened.num_prompt_tokens
    return SeenTokens(opened.history[:num_prompt], opened.history[num_prompt:])


def _ids(token_ids: Iterable[int]) -> Ids:
    return np.array(tuple(token_ids), dtype=np.int64)


def _biases(opened: SequenceOpen) -> Logits:
    return np.array([bias for _, bias in opened.sampling.logit_bias], dtype=np.float32)
