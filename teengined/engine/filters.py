"""Filters on the weights of one row: each sets to 0 what must not be drawn, and looks at nothing but its row.

Weights are probabilities up to a common factor: fp32, not negative. Excluded tokens have weight 0. Of equal weights
the lower id is kept first, so that a set has exactly the size it should have.

A vocabulary is never sorted. Most sets end among few likely tokens, which are looked at alone. Where they do not,
tokens are put into bins by the leading bits of their weight, whole bins are taken while they fit, and only the bin in
which the set ends is put in order.

Shapes: V = vocabulary, B = blocks or bins, K = candidates.
"""

import math

import numpy as np
import numpy.typing as npt

from teengined.core.sampling import SamplingParams

__all__ = ["filtered", "min_p", "top_k", "top_p", "typical"]

Weights = npt.NDArray[np.float32]

_BLOCK = 256
# Tokens that have at least this share of the largest one's probability hold nearly all of a trained model's.
_LIKELY = 2.0**-10
_MAX_LIKELY = 4096
_PIECE = 8192
_TINY = np.finfo(np.float32).tiny
# Bits of a positive float order as the float does. What is left of them after the shift is the exponent and five bits
# of the fraction: bins that are 1/32 of an octave wide.
_SHIFT = 18


def filtered(weights_V: Weights, params: SamplingParams) -> Weights:
    """Return the weights after top-k, top-p, min-p and typical set, each on what the one before it left."""
    if params.top_k:
        weights_V = top_k(weights_V, params.top_k)
    if params.top_p < 1:
        weights_V = top_p(weights_V, params.top_p)
    if params.min_p > 0:
        weights_V = min_p(weights_V, params.min_p)
    if params.typical_p < 1:
        weights_V = typical(weights_V, params.typical_p)
    return weights_V


def top_k(weights_V: Weights, k: int) -> Weights:
    """Keep the `k` largest."""
    if k >= weights_V.size:
        return weights_V
    ids_K = _at_least_kth(weights_V, k)
    weights_K = weights_V[ids_K]
    return _only(weights_V, ids_K[_first(weights_K, np.ones_like(weights_K), k, falling=True)])


def top_p(weights_V: Weights, share: float) -> Weights:
    """Keep the smallest set of the largest whose sum reaches `share` of all (Holtzman and others, 2019)."""
    target = share * float(weights_V.sum(dtype=np.float64))
    likely_V = weights_V >= _LIKELY * float(weights_V.max())
    if np.count_nonzero(likely_V) <= _MAX_LIKELY:
        ids_K = np.flatnonzero(likely_V)
        weights_K = weights_V[ids_K]
        if float(weights_K.sum(dtype=np.float64)) >= target:
            return _only(weights_V, ids_K[_first(weights_K, weights_K, target, falling=True)])
    return weights_V * _first(weights_V, weights_V, target, falling=True)


def min_p(weights_V: Weights, share: float) -> Weights:
    """Keep what is at least `share` of the largest (Nguyen and others, 2024)."""
    return weights_V * (weights_V >= share * float(weights_V.max()))


def typical(weights_V: Weights, share: float) -> Weights:
    """Keep the smallest set of those nearest to the expected surprise whose sum reaches `share` of all.

    Meister and others, "Locally typical sampling", 2022: the expected surprise is the entropy of what is left.
    """
    total = float(weights_V.sum(dtype=np.float64))
    # What has no weight gets some finite surprise, which weighs nothing.
    surprise_V = math.log(total) - np.log(np.maximum(weights_V, _TINY))
    entropy = float((weights_V * surprise_V).sum(dtype=np.float64)) / total
    distance_V = np.abs(surprise_V - np.float32(entropy))
    return weights_V * _first(distance_V, weights_V, share * total, falling=False)


def _at_least_kth(weights_V: Weights, k: int) -> npt.NDArray[np.intp]:
    """Return ids among which the `k` largest are.

    Each block's largest is a token of its own, so that at least `k` tokens are not below the `k`-th of those.
    """
    maxima_B = np.maximum.reduceat(weights_V, np.arange(0, weights_V.size, _BLOCK))
    floor = np.partition(maxima_B, -k)[-k] if k <= maxima_B.size else 0
    return np.flatnonzero(weights_V >= floor)


def _first(keys_K: Weights, masses_K: Weights, target: float, *, falling: bool) -> npt.NDArray[np.bool_]:
    """Return which come first in the order of keys, ties by index, so that their masses are just enough for `target`.

    Keys are not negative, and rise in that order or fall.
    """
    bins_K = keys_K.view(np.int32) >> _SHIFT
    if falling:
        np.subtract(bins_K.max(), bins_K, out=bins_K)
    cumulative_B = _sums(bins_K, masses_K).cumsum()
    edge = min(int(cumulative_B.searchsorted(target)), cumulative_B.size - 1)
    before = float(cumulative_B[edge - 1]) if edge else 0.0
    members = np.flatnonzero(bins_K == edge)
    keys = -keys_K[members] if falling else keys_K[members]
    members = members[keys.argsort(kind="stable")]
    num_kept = int((before + masses_K[members].cumsum(dtype=np.float64)).searchsorted(target)) + 1
    kept_K = bins_K < edge
    kept_K[members[:num_kept]] = True
    return kept_K


def _sums(bins_K: npt.NDArray[np.int32], masses_K: Weights) -> npt.NDArray[np.float64]:
    """Return the masses of each bin. Piece by piece, for numpy makes two wide copies of what it counts."""
    sums_B = np.zeros(int(bins_K.max()) + 1)
    for start in range(0, bins_K.size, _PIECE):
        bins = bins_K[start : start + _PIECE].astype(np.intp)
        sums_B += np.bincount(bins, weights=masses_K[start : start + _PIECE], minlength=sums_B.size)
    return sums_B


def _only(weights_V: Weights, ids: npt.NDArray[np.intp]) -> Weights:
    kept_V = np.zeros_like(weights_V)
    kept_V[ids] = weights_V[ids]
    return kept_V
