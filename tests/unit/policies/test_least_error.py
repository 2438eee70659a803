import itertools
import random

import pytest

from teengined.interfaces.precision_policy import PrecisionOption, PrecisionPart
from teengined_plugins.policies import least_error
from teengined_plugins.policies.least_error import LeastErrorPrecision


def part(*options: tuple[int, float]) -> PrecisionPart:
    made = (PrecisionOption(precision=f"p{n}", size_bytes=size, error=error) for n, (size, error) in enumerate(options))
    return PrecisionPart(name="part", options=tuple(made))


def random_parts(generator: random.Random, num_parts: int, sizes: int) -> list[PrecisionPart]:
    return [
        part(*((generator.randint(1, sizes), generator.random()) for _ in range(generator.randint(1, 3))))
        for _ in range(num_parts)
    ]


def total_error(options) -> float:
    return sum(option.error for option in options)


def total_bytes(options) -> int:
    return sum(option.size_bytes for option in options)


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_within_the_bytes_has_less_error(seed: int) -> None:
    generator = random.Random(seed)
    parts = random_parts(generator, generator.randint(1, 7), 30)
    every = list(itertools.product(*(one.options for one in parts)))
    least = min(map(total_bytes, every))
    for budget in (least, least + 5, least + 20, 1000):
        chosen = LeastErrorPrecision().choose(parts, budget)

        assert total_bytes(chosen) <= budget, f"seed {seed}"
        best = min(total_error(choice) for choice in every if total_bytes(choice) <= budget)
        assert total_error(chosen) == pytest.approx(best), f"seed {seed}"


@pytest.mark.parametrize("seed", range(10))
def test_a_long_front_is_thinned_and_still_fits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(seed)
    parts = random_parts(generator, 30, 10**9)
    least = sum(min(option.size_bytes for option in one.options) for one in parts)
    budget = int(least * 1.3)
    exact = LeastErrorPrecision().choose(parts, budget)
    monkeypatch.setattr(least_error, "_MAX_FRONT", 200)

    thinned = LeastErrorPrecision().choose(parts, budget)

    assert total_bytes(thinned) <= budget
    assert total_error(thinned) <= total_error(exact) * 1.1 + 1e-9, f"seed {seed}"
    assert total_bytes(LeastErrorPrecision().choose(parts, least)) == least
