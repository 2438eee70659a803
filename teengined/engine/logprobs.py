"""Log-probabilities of one row of raw logits: log-softmax before temperature, penalties and filters.

Shapes: V = vocabulary, B = blocks of it.
"""

import math

import numpy as np
import numpy.typing as npt

from teengined.core.request import TokenLogprobs

__all__ = ["token_logprobs"]

Logits = npt.NDArray[np.float32]

_BLOCK = 256


def token_logprobs(logits_V: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Return those of a token and of the `num_top` most probable ones, ties by lower id. The largest is finite.

    Exponentials are fp32, their sum and the result fp64.
    """
    largest = float(logits_V.max())
    with np.errstate(over="ignore"):  # far below the largest: probability 0
        log_sum = math.log(float(np.exp(logits_V - np.float32(largest)).sum(dtype=np.float64)))
    top = _top_ids(logits_V, num_top).tolist() if num_top else ()
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logits_V[token_id]) - largest - log_sum,
        top=tuple((other, float(logits_V[other]) - largest - log_sum) for other in top),
    )


def _top_ids(logits_V: Logits, num_top: int) -> npt.NDArray[np.intp]:
    """Return the ids of the largest, largest first.

    The largest of each block are as many tokens as there are blocks: at least `num_top` tokens are not below the
    `num_top`-th of those, so that only what is not below it needs to be put in order.
    """
    maxima_B = np.maximum.reduceat(logits_V, np.arange(0, logits_V.size, _BLOCK))
    if num_top < maxima_B.size:
        candidates = np.flatnonzero(logits_V >= np.partition(maxima_B, -num_top)[-num_top])
    else:
        candidates = np.arange(logits_V.size)
    return candidates[np.argsort(-logits_V[candidates], kind="stable")[:num_top]]
