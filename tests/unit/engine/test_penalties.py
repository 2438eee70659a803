"""Penalties count prompt and answer apart, and do not depend on when a token was folded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.sampling import SamplingParams
from teengined.engine.penalties import SeenTokens

TOKENS = st.lists(st.integers(0, 199), max_size=300)


def penalised(seen: SeenTokens, params: SamplingParams, logits: list[float] | None = None) -> list[float]:
    values = np.array(logits or np.linspace(-3, 3, 200), np.float32)
    seen.penalise(values, params)
    return values.tolist()


def test_repetition_divides_positive_and_multiplies_negative_logits_of_prompt_and_answer() -> None:
    seen = SeenTokens([0, 0], [1])

    assert penalised(seen, SamplingParams(repetition_penalty=2.0), [4, -4, 4, -4]) == [2, -8, 4, -4]


def test_presence_counts_once_and_only_the_answer() -> None:
    seen = SeenTokens([0, 1], [1, 1, 2])

    assert penalised(seen, SamplingParams(presence_penalty=0.5), [1, 1, 1, 1]) == [1, 0.5, 0.5, 1]


def test_frequency_counts_each_time_and_only_the_answer() -> None:
    seen = SeenTokens([0, 1], [1, 1, 2])

    assert penalised(seen, SamplingParams(frequency_penalty=0.5), [1, 1, 1, 1]) == [1, 0, 0.5, 1]


def test_repetition_comes_before_what_is_subtracted() -> None:
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.5)

    assert penalised(SeenTokens([], [0]), params, [4]) == [0.5]


def test_what_must_not_be_drawn_stays_so() -> None:
    params = SamplingParams(repetition_penalty=0.5, presence_penalty=-2.0)

    assert penalised(SeenTokens([], [0]), params, [-np.inf]) == [-np.inf]


@given(prompt=TOKENS, answer=TOKENS, cut=st.integers(0, 300))
def test_taking_up_again_gives_the_same_bits(prompt: list[int], answer: list[int], cut: int) -> None:
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=-0.2)
    straight, resumed = SeenTokens(prompt, []), SeenTokens(prompt, answer[:cut])
    for token_id in answer:
        straight.add(token_id)
    for token_id in answer[cut:]:
        resumed.add(token_id)

    assert penalised(straight, params) == penalised(resumed, params)


@given(prompt=TOKENS, answer=TOKENS)
def test_every_token_pays_what_the_formula_says(prompt: list[int], answer: list[int]) -> None:
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.125)
    logits = np.linspace(-3, 3, 200, dtype=np.float32).tolist()
    expected = list(logits)
    for token_id in {*prompt, *answer}:
        expected[token_id] = logits[token_id] / 1.5 if logits[token_id] > 0 else logits[token_id] * 1.5
        expected[token_id] -= 0.25 * (token_id in answer) + 0.125 * answer.count(token_id)

    assert penalised(SeenTokens(prompt, answer), params, logits) == pytest.approx(expected, abs=1e-5)
