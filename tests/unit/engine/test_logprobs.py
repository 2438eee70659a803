"""Log-probabilities are log-softmax's, and the alternatives are the most probable tokens in order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teengined.engine.logprobs import token_logprobs


def made(size: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


@given(size=st.integers(1, 9000), seed=st.integers(0, 1000), num_top=st.integers(0, 20))
def test_they_are_those_of_a_log_softmax_in_double(size: int, seed: int, num_top: int) -> None:
    logits = made(size, seed)
    expected = torch.from_numpy(logits).double().log_softmax(0)

    told = token_logprobs(logits, size // 2, num_top)

    assert told.token_id == size // 2
    assert told.logprob == pytest.approx(float(expected[size // 2]), abs=1e-5)
    values, ids = expected.sort(descending=True, stable=True)
    assert [token_id for token_id, _ in told.top] == ids[:num_top].tolist()
    assert [logprob for _, logprob in told.top] == pytest.approx(values[:num_top].tolist(), abs=1e-5)


def test_of_equal_logits_the_lower_ids_come_first() -> None:
    logits = np.zeros(50_000, np.float32)

    assert [token_id for token_id, _ in token_logprobs(logits, 0, 20).top] == list(range(20))


def test_a_token_that_the_model_excludes_has_no_probability() -> None:
    told = token_logprobs(np.array([0.0, -np.inf], np.float32), 1, 2)

    assert told.logprob == -math.inf
    assert told.top == ((0, 0.0), (1, -math.inf))


def test_huge_logits_do_not_overflow() -> None:
    assert token_logprobs(np.array([3e38, 3e38], np.float32), 0, 1).logprob == pytest.approx(-math.log(2))
