"""Filters on the weights of one row: each sets to 0 what must not be drawn, and looks at nothing but its row.

Weights are probabilities up to a common factor: fp32, not negative. Excluded tokens have weight 0. Of equal weights
the lower id is kept first, so that a set has exactly the size it should have.

Nothing is sorted but the few tokens around a set's edge: tokens are put into bins by the leading bits of their weight,
whole bins are taken while they fit, and only the bin in which the set ends is put in order.

Shapes: V = vocabulary, B = bins, K = tokens that are left.
"""

import math

import numpy as np
import numpy.typing as npt

from teengined.core.sampling import SamplingParams

__all__ = ["filtered", "min_p", "top_k", "top_p", "typical"]

Weights = npt.NDArray[np.float32]

# Bits of a positive float order as the float does. What is left of them after the shift is the exponent and five bits
# of the fraction: bins that are 1/32 of an octave wide.
_SHIFT = 18
_LAST_BIN = 0x7F800000 >> _SHIFT


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
    bins_V = _LAST_BIN - _bins(weights_V)
    counts_B = np.bincount(bins_V, minlength=_LAST_BIN + 1).astype(np.float64)
    edge = int(counts_B.cumsum().searchsorted(k))
    num_before = int(counts_B[:edge].sum())
    members = np.flatnonzero(bins_V == edge)
    order = members[np.argsort(-weights_V[members], kind="stable")]
    return _keep(weights_V, bins_V < edge, order[: k - num_before])


def top_p(weights_V: Weights, share: float) -> Weights:
    """Keep the smallest set of the largest whose sum reaches `share` of all (Holtzman and others, 2019)."""
    return _cover(weights_V, -weights_V, _LAST_BIN - _bins(weights_V), share)


def min_p(weights_V: Weights, share: float) -> Weights:
    """Keep what is at least `share` of the largest (Nguyen and others, 2024)."""
    return _keep(weights_V, weights_V >= share * float(weights_V.max()))


def typical(weights_V: Weights, share: float) -> Weights:
    """Keep the smallest set of those nearest to the expected surprise whose sum reaches `share` of all.

    Meister and others, "Locally typical sampling", 2022: the expected surprise is the entropy of what is left.
    """
    ids_K = np.flatnonzero(weights_V)
    weights_K = weights_V[ids_K]
    total = float(weights_K.sum(dtype=np.float64))
    surprise_K = math.log(total) - np.log(weights_K)
    entropy = float((weights_K * surprise_K).sum(dtype=np.float64)) / total
    distance_K = np.abs(surprise_K - entropy).astype(np.float32)
    kept_V = np.zeros_like(weights_V)
    kept_V[ids_K] = _cover(weights_K, distance_K, _bins(distance_K), share)
    return kept_V


def _bins(keys: Weights) -> npt.NDArray[np.intp]:
    return (keys.view(np.int32) >> _SHIFT).astype(np.intp)


def _cover(weights: Weights, keys: Weights, bins: npt.NDArray[np.intp], share: float) -> Weights:
    """Keep those with the smallest keys until their weights reach `share` of all. `bins` must rise with the keys."""
    cumulative_B = np.bincount(bins, weights=weights, minlength=_LAST_BIN + 1).cumsum()
    target = share * float(cumulative_B[-1])
    edge = int(cumulative_B.searchsorted(target))
    before = float(cumulative_B[edge - 1]) if edge else 0.0
    members = np.flatnonzero(bins == edge)
    order = members[np.argsort(keys[members], kind="stable")]
    num_kept = int((before + weights[order].cumsum(dtype=np.float64)).searchsorted(target)) + 1
    return _keep(weights, bins < edge, order[:num_kept])


def _keep(weights: Weights, kept: npt.NDArray[np.bool_], also: npt.NDArray[np.intp] | None = None) -> Weights:
    if also is not None:
        kept[also] = True
    return weights * kept
