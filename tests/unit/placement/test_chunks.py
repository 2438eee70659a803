"""Prompts go in larger chunks where experts are streamed, as far as the memory for it is not missed."""

from dataclasses import replace

import pytest

from teengined.core.errors import DoesNotFit
from teengined.core.model import ModelManifest, UnitKind
from teengined.placement.chunks import plan_with_chunks
from teengined.placement.experts import touched_share
from teengined.placement.planner import plan
from tests.unit.placement.fleets import Optimal, manifest, planning, spec, unit


def routed() -> ModelManifest:
    dense = manifest([1] * 2, num_experts=16, num_experts_per_token=1)
    experts = [unit(UnitKind.EXPERT, 20, layer=layer, expert=e) for layer in (0, 1) for e in range(16)]
    return replace(dense, units=(*dense.units, *experts))


def test_a_chunk_is_raised_where_experts_are_streamed_and_a_prompt_is_sooner_read() -> None:
    inputs = planning(routed(), [spec(0, 300)], context_tokens=4096, max_step_tokens=64)

    found, taken = plan_with_chunks(inputs, Optimal(), 512)

    assert taken.max_step_tokens == 512
    assert found == plan(taken, Optimal())
    assert found.prefill_seconds < plan(inputs, Optimal()).prefill_seconds


@pytest.mark.parametrize("model", [manifest([20] * 8), replace(routed(), name="small")])
def test_it_stays_where_no_expert_is_streamed(model: ModelManifest) -> None:
    pages = 90 if model.num_experts == 0 else 2000
    inputs = planning(model, [spec(0, pages)], max_step_tokens=8)

    assert plan_with_chunks(inputs, Optimal(), 512) == (plan(inputs, Optimal()), inputs)


def test_a_chunk_that_would_take_the_cache_is_halved_until_it_is_small() -> None:
    tight = planning(replace(routed(), hidden_size=64), [spec(0, 150)], context_tokens=4096, max_step_tokens=4)

    found, taken = plan_with_chunks(tight, Optimal(), 1024)

    assert 4 < taken.max_step_tokens < 1024
    assert found.seconds_per_token <= 1.05 * plan(tight, Optimal()).seconds_per_token


def test_what_does_not_fit_is_told_as_ever() -> None:
    with pytest.raises(DoesNotFit):
        plan_with_chunks(planning(routed(), [spec(0, 3)]), Optimal(), 512)


def test_the_share_of_experts_that_many_tokens_touch_grows_to_all() -> None:
    assert touched_share(0.25, 1) == pytest.approx(0.25)
    assert touched_share(0.25, 2) == pytest.approx(0.4375)
    assert touched_share(0.25, 1000) == pytest.approx(1.0)
