"""Each filter keeps the set that a plain sort keeps, and nothing else."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teengined.core.sampling import SamplingParams
from teengined.engine.filters import filtered, min_p, top_k, top_p, typical

Weights = npt.NDArray[np.float32]

SIZES = st.integers(1, 400)
SPREADS = st.sampled_from([0.0, 0.01, 1.0, 5.0, 60.0])
SEEDS = st.integers(0, 10_000)
SHARES = st.floats(0.001, 0.999)


def made(size: int, spread: float, seed: int, *, levels: int = 0) -> Weights:
    """Return weights whose largest is 1; with `levels`, only so many different ones, so that many are equal."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal(size) * spread
    if levels:
        logits = generator.integers(0, levels, size) * max(spread, 0.1)
    return np.exp((logits - logits.max()).astype(np.float32))


def sorted_set(weights: Weights, share: float, key: Callable[[float], float]) -> list[int]:
    """Return the ids of the smallest set in the order of `key`, ties by id, whose sum reaches the share."""
    total = float(np.sum(weights, dtype=np.float64))
    kept: list[int] = []
    mass = 0.0
    for token_id in sorted(np.flatnonzero(weights).tolist(), key=lambda i: (key(float(weights[i])), i)):
        kept.append(token_id)
        mass += float(weights[token_id])
        if mass >= share * total:
            break
    return sorted(kept)


def on_the_edge(weights: Weights, share: float, key: Callable[[float], float]) -> bool:
    """Whether rounding may decide where the set ends: its sum hits the share, or two keys are as good as equal."""
    total = float(np.sum(weights, dtype=np.float64))
    ordered = sorted((key(float(weight)), float(weight)) for weight in weights if weight)
    sums = np.cumsum([weight for _, weight in ordered]) - share * total
    return bool(np.any(np.abs(sums) < 1e-6 * total))


@given(size=SIZES, spread=SPREADS, seed=SEEDS, k=st.integers(1, 450), levels=st.sampled_from([0, 3]))
def test_top_k_keeps_the_k_largest_and_of_equals_the_lower_ids(
    size: int, spread: float, seed: int, k: int, levels: int
) -> None:
    weights = made(size, spread, seed, levels=levels)
    expected = np.argsort(-weights, kind="stable")[:k]

    kept = top_k(weights, k)

    assert set(np.flatnonzero(kept)) == {i for i in expected.tolist() if weights[i] > 0}
    assert np.array_equal(kept[kept > 0], weights[kept > 0])


@given(size=SIZES, spread=SPREADS, seed=SEEDS, share=SHARES, levels=st.sampled_from([0, 3]))
@example(size=400, spread=0.0, seed=0, share=0.4999, levels=0)
def test_top_p_keeps_the_smallest_set_that_reaches_it(
    size: int, spread: float, seed: int, share: float, levels: int
) -> None:
    weights = made(size, spread, seed, levels=levels)
    if on_the_edge(weights, share, lambda weight: -weight):
        return

    assert np.flatnonzero(top_p(weights, share)).tolist() == sorted_set(weights, share, lambda weight: -weight)


@given(size=SIZES, spread=SPREADS, seed=SEEDS, share=st.floats(0.0001, 1))
def test_min_p_keeps_what_is_near_enough_to_the_largest(size: int, spread: float, seed: int, share: float) -> None:
    weights = made(size, spread, seed)

    assert np.array_equal(min_p(weights, share) > 0, (weights >= np.float32(share)) & (weights > 0))


@given(size=SIZES, spread=st.sampled_from([0.5, 1.0, 5.0]), seed=SEEDS, share=SHARES)
def test_typical_keeps_those_nearest_to_the_expected_surprise(
    size: int, spread: float, seed: int, share: float
) -> None:
    weights = made(size, spread, seed)
    probabilities = weights[weights > 0] / np.sum(weights, dtype=np.float64)
    entropy = -float(np.sum(probabilities * np.log(probabilities)))
    total = float(np.sum(weights, dtype=np.float64))

    def distance(weight: float) -> float:
        return abs(-np.log(weight / total) - entropy)

    distances = np.sort([distance(float(weight)) for weight in weights if weight])
    if on_the_edge(weights, share, distance) or np.any(np.diff(distances) < 1e-4):
        return

    assert np.flatnonzero(typical(weights, share)).tolist() == sorted_set(weights, share, distance)


def test_typical_may_leave_out_the_most_probable_token() -> None:
    weights = np.array([0.4, *[0.01] * 60], np.float32)

    assert typical(weights, 0.5)[0] == 0


def test_filters_are_applied_to_what_the_one_before_left() -> None:
    weights = np.array([4, 3, 2, 1], np.float32)

    assert np.flatnonzero(top_p(weights, 0.72)).tolist() == [0, 1, 2]
    assert np.flatnonzero(filtered(weights, SamplingParams(top_k=3, top_p=0.72))).tolist() == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 49152])
def test_something_is_always_left(size: int) -> None:
    weights = made(size, 3.0, 1)
    params = SamplingParams(top_k=1, top_p=1e-9, min_p=1.0, typical_p=1e-9)

    assert np.flatnonzero(filtered(weights, params)).tolist() == [int(weights.argmax())]


def test_weights_that_vanish_are_never_kept() -> None:
    weights = np.array([1.0, 0.0, 1e-45, 0.0], np.float32)

    for kept in (top_k(weights, 3), top_p(weights, 0.999999), min_p(weights, 1e-45), typical(weights, 0.999999)):
        assert np.flatnonzero(kept).tolist()[0] == 0
        assert not kept[1]
        assert not kept[3]


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_a_large_vocabulary_keeps_the_same_set_as_a_sort(spread: float) -> None:
    weights = made(151_936, spread, 4)
    order = np.argsort(-weights, kind="stable")
    cumulative = weights[order].cumsum(dtype=np.float64)
    expected = order[: int(np.searchsorted(cumulative, 0.9 * cumulative[-1])) + 1]

    assert len(np.setxor1d(np.flatnonzero(top_p(weights, 0.9)), expected)) <= 1
