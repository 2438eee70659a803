"""Draws depend on seed, choice and position alone, and follow the distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import InternalError
from teengined.engine.sampler import sample, uniform

LOGITS = torch.tensor([0.1, 2.0, 1.0, -3.0]).log_softmax(0)
COUNTERS = st.integers(0, 2**32)


def test_greedy_takes_the_largest_logit() -> None:
    assert sample(LOGITS, temperature=0, top_p=1.0, draw=0.99) == 1


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert sample(torch.tensor([1.0, 3.0, 3.0]), temperature=0, top_p=1.0, draw=0.0) == 1


@given(seed=st.integers(0, 2**64 - 1), choice=COUNTERS, position=COUNTERS)
def test_a_draw_is_a_function_of_its_counter(seed: int, choice: int, position: int) -> None:
    first = uniform(seed=seed, choice=choice, position=position)

    assert 0 <= first < 1
    assert uniform(seed=seed, choice=choice, position=position) == first


def test_draws_of_neighbouring_counters_are_uncorrelated() -> None:
    draws = torch.tensor([[uniform(seed=s, choice=0, position=p) for p in range(40)] for s in range(40)])

    assert abs(float(draws.mean()) - 0.5) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1])) < 0.08


def test_frequencies_follow_the_probabilities() -> None:
    draws = [uniform(seed=3, choice=0, position=position) for position in range(4000)]
    counts = torch.zeros(4)
    for draw in draws:
        counts[sample(LOGITS, temperature=1.0, top_p=1.0, draw=draw)] += 1

    torch.testing.assert_close(counts / 4000, LOGITS.exp(), atol=0.03, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    drawn = {sample(LOGITS, temperature=1.0, top_p=0.7, draw=step / 100) for step in range(100)}

    assert drawn == {1, 2}


def test_top_p_below_the_best_token_is_greedy() -> None:
    assert {sample(LOGITS, temperature=1.0, top_p=0.01, draw=step / 100) for step in range(100)} == {1}


def test_a_draw_of_almost_one_stays_within_the_vocabulary() -> None:
    assert sample(LOGITS, temperature=5.0, top_p=1.0, draw=1 - 2**-53) in range(4)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(InternalError, match="not numbers"):
        sample(torch.tensor([0.0, float("nan")]), temperature=1.0, top_p=1.0, draw=0.5)
