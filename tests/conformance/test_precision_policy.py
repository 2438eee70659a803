"""The contract of precision policies, held by every installed one."""

import random

import pytest

from teengined.core.errors import DoesNotFit
from teengined.interfaces.precision_policy import PrecisionOption, PrecisionPart, PrecisionPolicy
from teengined.interfaces.registry import PluginRegistry

POLICIES = PluginRegistry.load().precision_policies()


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> PrecisionPolicy:
    return POLICIES[request.param]


def _parts(seed: int) -> list[PrecisionPart]:
    """Parts of three precisions, the smaller with more error."""
    generator = random.Random(seed)
    parts: list[PrecisionPart] = []
    for place in range(generator.randint(1, 40)):
        size, error = generator.randint(8, 10_000), generator.random()
        options = (("bf16", 2 * size, 0.0), ("int8", size, error / 10), ("int4", size // 2, error))
        made = tuple(PrecisionOption(precision=name, size_bytes=held, error=lost) for name, held, lost in options)
        parts.append(PrecisionPart(name=f"layers.{place}.mlp", options=made))
    return parts


@pytest.mark.parametrize("seed", range(20))
def test_each_part_gets_one_of_its_options_and_together_they_fit(policy: PrecisionPolicy, seed: int) -> None:
    parts = _parts(seed)
    least = sum(part.options[2].size_bytes for part in parts)
    for budget in (least, int(least * 1.5), least * 4 + len(parts) * 4):
        chosen = policy.choose(parts, budget)

        assert len(chosen) == len(parts)
        assert all(option in part.options for option, part in zip(chosen, parts, strict=True))
        assert sum(option.size_bytes for option in chosen) <= budget


def test_equal_questions_get_equal_answers(policy: PrecisionPolicy) -> None:
    budget = sum(part.options[1].size_bytes for part in _parts(3))

    assert policy.choose(_parts(3), budget) == policy.choose(_parts(3), budget)


def test_what_fits_no_way_is_refused_with_the_bytes_it_needs(policy: PrecisionPolicy) -> None:
    option = PrecisionOption(precision="int4", size_bytes=3 << 20, error=0.1)

    with pytest.raises(DoesNotFit, match=r"3\.1 MB"):
        policy.choose([PrecisionPart(name="head", options=(option,))], 1 << 20)


def test_nothing_to_choose_is_nothing(policy: PrecisionPolicy) -> None:
    assert policy.choose([], 0) == ()
