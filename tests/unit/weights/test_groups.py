import dataclasses

import pytest

from teengined.core.errors import PackageError
from teengined.core.plan import Tier
from teengined.weights.groups import group_units, tiers_of_units
from tests.fakes.package_builder import build_package, stage_of


def test_groups_are_one_for_each_layer_and_one_for_the_head_in_order_of_execution(tmp_path):
    package = build_package(tmp_path, num_layers=2, num_experts=2)

    groups = group_units(package.manifest, stage_of(package))

    assert [group.unit_ids for group in groups] == [
        ("layer.0", "layer.0.expert.0", "layer.0.expert.1"),
        ("layer.1", "layer.1.expert.0", "layer.1.expert.1"),
        ("head",),
    ]
    assert [group.index for group in groups] == [0, 1, 2]


def test_a_head_that_shares_the_embedding_needs_the_embedding_unit(tmp_path):
    package = build_package(tmp_path, num_layers=1, tied=True)

    assert group_units(package.manifest, stage_of(package))[-1].unit_ids == ("head", "embedding")


def test_a_stage_without_head_has_only_its_layers(tmp_path):
    package = build_package(tmp_path, num_layers=4)

    groups = group_units(package.manifest, stage_of(package, layers=(1, 3), has_head=False))

    assert [group.unit_ids for group in groups] == [("layer.1",), ("layer.2",)]


def test_a_group_streams_as_soon_as_one_of_its_units_does(tmp_path):
    package = build_package(tmp_path, num_layers=2, num_experts=2)

    groups = group_units(package.manifest, stage_of(package, streamed=("layer.1.expert.1",)))

    assert [group.streamed for group in groups] == [False, True, False]


def test_the_embedding_alone_makes_no_group_stream(tmp_path):
    package = build_package(tmp_path, num_layers=1)

    assert not any(
        group.streamed for group in group_units(package.manifest, stage_of(package, streamed=("embedding",)))
    )


def test_a_plan_for_another_package_is_refused_with_the_units_name(tmp_path):
    package = build_package(tmp_path, num_layers=2)
    stage = stage_of(package)
    other = dataclasses.replace(stage, units=tuple(unit for unit in stage.units if unit.unit_id != "layer.1"))

    with pytest.raises(PackageError, match=r"layer\.1"):
        group_units(package.manifest, other)


def test_tiers_of_units_answer_for_the_units_asked(tmp_path):
    package = build_package(tmp_path, num_layers=2)

    tiers = tiers_of_units(stage_of(package, streamed=("layer.0",)), ("layer.0", "layer.1"))

    assert tiers == {"layer.0": Tier.DISK, "layer.1": Tier.DEVICE}
