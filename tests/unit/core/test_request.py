"""Sampling parameters that exist are valid ones."""

import math
from typing import Any

import pytest

from teengined.core.sampling import SamplingParams


def test_default_is_greedy() -> None:
    assert SamplingParams().temperature == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 101.0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_what_no_sampler_can_honour_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_bounds_themselves_are_allowed() -> None:
    params = SamplingParams(max_tokens=1, temperature=100.0, top_p=1.0, seed=2**64 - 1)

    assert params.seed == 2**64 - 1
