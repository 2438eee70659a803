"""Draws depend on seed, choice and position alone, and pick in proportion to the weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.engine.draws import pick, uniform

COUNTERS = st.integers(0, 2**32)
LAST = 1 - 2**-53


@given(seed=st.integers(0, 2**64 - 1), choice=COUNTERS, position=COUNTERS)
def test_a_draw_is_a_function_of_its_counter(seed: int, choice: int, position: int) -> None:
    first = uniform(seed=seed, choice=choice, position=position)

    assert 0 <= first < 1
    assert uniform(seed=seed, choice=choice, position=position) == first


@pytest.mark.parametrize("other", [{"seed": 2}, {"choice": 1}, {"position": 6}, {"draw": 1}])
def test_every_part_of_the_counter_matters(other: dict[str, int]) -> None:
    counter = {"seed": 1, "choice": 0, "position": 5, "draw": 0}

    assert uniform(**counter) != uniform(**{**counter, **other})


def test_a_number_stays_the_same_across_releases() -> None:
    assert uniform(seed=7, choice=1, position=20) == 0.8440897636915684


def test_draws_of_neighbouring_counters_are_uncorrelated() -> None:
    draws = np.array([[uniform(seed=s, choice=0, position=p) for p in range(40)] for s in range(40)])

    assert abs(float(draws.mean()) - 0.5) < 0.03
    assert abs(float(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1])) < 0.08


@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.25, 1.0]), min_size=1, max_size=700).filter(any),
    share=st.floats(0, LAST),
)
def test_what_has_no_weight_is_never_picked(weights: list[float], share: float) -> None:
    assert weights[pick(np.array(weights, np.float32), share)] > 0


@given(num_weights=st.integers(1, 1000), share=st.floats(0, LAST), seed=st.integers(0, 1000))
def test_the_pick_is_where_the_cumulative_sum_passes_the_share(num_weights: int, share: float, seed: int) -> None:
    weights = np.random.default_rng(seed).random(num_weights, np.float32)
    cumulative = weights.cumsum(dtype=np.float64)

    picked = pick(weights, share)

    before = cumulative[picked - 1] if picked else 0.0
    assert before - 1e-9 <= share * cumulative[-1] <= cumulative[picked] + 1e-9


@pytest.mark.parametrize("num_weights", [1, 255, 256, 257, 49152, 151_936])
def test_a_share_of_almost_one_stays_within_the_vocabulary(num_weights: int) -> None:
    weights = np.full(num_weights, 0.1, np.float32)

    assert pick(weights, LAST) == num_weights - 1
    assert pick(weights, 0.0) == 0
