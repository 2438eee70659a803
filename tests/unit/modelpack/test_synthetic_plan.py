"""Which units of a synthetic package share bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import RequestError
from teengined.core.model import UnitKind
from teengined.modelpack.assembly import UnitFile
from teengined.modelpack.outline import ParameterOutline, Role
from teengined.modelpack.synthetic_plan import SyntheticPlan, plan_synthetic

NUM_LAYERS, NUM_EXPERTS = 4, 6
PAGE = 4096
DENSE, EXPERT, OUTSIDE = 100 * PAGE, 10 * PAGE, 50 * PAGE
LEAST = 2 * OUTSIDE + DENSE + EXPERT
ALL = 2 * OUTSIDE + NUM_LAYERS * (DENSE + NUM_EXPERTS * EXPERT)


def parameter(name: str, size: int, num_experts: int = 0) -> ParameterOutline:
    return ParameterOutline(name=name, role=Role.MATRIX, dtype=torch.bfloat16, shape=(size, 1), num_experts=num_experts)


def files() -> tuple[UnitFile, ...]:
    layers = (
        UnitFile(
            name=f"layer-{layer}.safetensors",
            kind=UnitKind.LAYER,
            layer=layer,
            parameters=(
                parameter(f"model.layers.{layer}.attention", DENSE),
                parameter(f"model.layers.{layer}.experts.up", EXPERT, NUM_EXPERTS),
            ),
        )
        for layer in range(NUM_LAYERS)
    )
    embedding = UnitFile(name="e", kind=UnitKind.EMBEDDING, layer=None, parameters=(parameter("embed", OUTSIDE),))
    head = UnitFile(name="h", kind=UnitKind.HEAD, layer=None, parameters=(parameter("head", OUTSIDE),))
    return (embedding, *layers, head)


def plan(distinct_bytes: int | None) -> SyntheticPlan:
    return plan_synthetic(files(), lambda _kind, one: one.shape[0], distinct_bytes)


def contents_of(made: SyntheticPlan, kind: UnitKind) -> list[object]:
    return [content for slot, content in made.slots if slot.kind is kind]


def test_without_a_limit_every_unit_has_bytes_of_its_own() -> None:
    made = plan(None)

    assert len({content for _, content in made.slots}) == len(made.slots) == 2 + NUM_LAYERS * (1 + NUM_EXPERTS)
    assert made.distinct_bytes == ALL


def test_dense_units_take_their_part_before_experts() -> None:
    made = plan(2 * OUTSIDE + NUM_LAYERS * DENSE + 8 * EXPERT)

    assert len(set(contents_of(made, UnitKind.LAYER))) == NUM_LAYERS
    assert len(set(contents_of(made, UnitKind.EXPERT))) == 8


def test_experts_of_one_layer_differ_where_there_are_contents_enough() -> None:
    made = plan(2 * OUTSIDE + NUM_LAYERS * DENSE + NUM_EXPERTS * EXPERT)

    for layer in range(NUM_LAYERS):
        assert len({content for slot, content in made.slots if slot.layer == layer and slot.expert is not None}) == (
            NUM_EXPERTS
        )


def test_too_few_bytes_are_refused_with_the_least() -> None:
    with pytest.raises(RequestError, match=r"one unit of each shape takes 860 kB"):
        plan(LEAST - 1)


def test_slots_are_in_order_of_execution() -> None:
    ids = [slot.id for slot, _ in plan(LEAST).slots]

    assert ids[:3] == ["embedding", "layer.0", "layer.0.expert.0"]
    assert ids[-2:] == ["layer.3.expert.5", "head"]


@given(st.integers(min_value=LEAST, max_value=2 * ALL))
def test_the_limit_holds_and_every_content_has_one_place(distinct_bytes: int) -> None:
    made = plan(distinct_bytes)

    assert made.distinct_bytes <= distinct_bytes
    written = [content for file in made.files for _, content in file.contents]
    assert len(written) == len(set(written))
    assert set(written) == {content for _, content in made.slots}
    assert len({file.name for file in made.files}) == len(made.files)
