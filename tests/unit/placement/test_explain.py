"""The words around a plan name what a person needs, and what they advise holds."""

from dataclasses import replace

from teengined.core.model import UnitKind
from teengined.core.plan import Objective, Plan
from teengined.placement.advice import suggestions
from teengined.placement.explain import explain
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan
from tests.unit.placement.fleets import PAGE, Optimal, host, manifest, planning, spec, unit


def streaming() -> PlanningInput:
    return planning(manifest([20] * 8), [spec(0, 95), spec(1, 65)], host=host(disk=0.25), num_slots=2)


def lines_of(found: Plan) -> list[str]:
    return list(explain(found, model_bytes=162 * PAGE, suggestions=("+1 GB on cpu:0 -> +9% tokens/s",)))


def test_each_stage_has_a_row_under_the_headers() -> None:
    found = plan(replace(streaming(), objective=Objective.THROUGHPUT), Optimal())

    lines = lines_of(found)

    header = next(index for index, line in enumerate(lines) if line.startswith("STAGE"))
    rows = lines[header + 1 : header + 1 + len(found.stages)]
    assert "STREAMED/TOKEN" in lines[header]
    assert [row.split()[1] for row in rows] == [stage.device_id for stage in found.stages]
    assert rows[0].split()[2].startswith("embedding+0–")
    assert rows[-1].split()[2].endswith("7+head")


def test_speed_bound_binding_and_advice_are_told() -> None:
    text = "\n".join(lines_of(plan(streaming(), Optimal())))

    assert "tokens/s" in text
    assert "no plan on these devices is faster" in text
    assert "binds: reading streamed layers of" in text
    assert "would help: +1 GB on cpu:0 -> +9% tokens/s" in text


def test_a_gap_is_told_as_a_share() -> None:
    found = replace(plan(streaming(), Optimal()), gap=0.125)

    assert any("within 12.5%" in line for line in lines_of(found))


def test_devices_left_out_are_named() -> None:
    found = plan(planning(manifest([1]), [spec(0, 50), spec(1, 50)]), Optimal())

    assert "not used: cpu:1" in lines_of(found)


def test_a_plan_that_streams_is_advised_memory_and_a_faster_disk() -> None:
    inputs = streaming()
    found = plan(inputs, Optimal())

    advice = suggestions(inputs, Optimal(), found)

    assert any(" on cpu:" in text for text in advice)
    assert any("disk" in text for text in advice)
    assert len(advice) <= 3


def test_a_plan_without_streaming_gets_no_advice() -> None:
    inputs = planning(manifest([2] * 4), [spec(0, 100)])

    assert suggestions(inputs, Optimal(), plan(inputs, Optimal())) == ()


def test_a_cache_of_experts_is_told_with_its_expected_hit_rate() -> None:
    experts = [unit(UnitKind.EXPERT, 1, layer=layer, expert=e) for layer in (0, 1) for e in range(4)]
    dense = manifest([1] * 2, num_experts=4, num_experts_per_token=1)
    model = replace(dense, units=(*dense.units, *experts))

    text = "\n".join(lines_of(plan(planning(model, [spec(0, 5.1)]), Optimal())))

    assert "experts on cpu:0: cache of 2 of 8, 8.2 kB; expected hit rate 2" in text
    assert "of its 8.2 kB" in text
