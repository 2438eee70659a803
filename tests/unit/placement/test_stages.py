"""Where every unit of a stage lies, and how much memory each part takes."""

import re
from dataclasses import replace

import pytest

from teengined.core.device import LinkProfile
from teengined.core.errors import DoesNotFit
from teengined.core.model import ModelManifest, UnitKind
from teengined.core.plan import Plan, Tier
from teengined.interfaces.policy import Assignment
from teengined.placement.planner import plan
from tests.unit.placement.fleets import PAGE, Optimal, host, manifest, planning, profile, spec, unit


def tiers(found: Plan, stage: int = 0) -> dict[str, Tier]:
    return {placement.unit_id: placement.tier for placement in found.stages[stage].units}


def halves(num_layers: int) -> tuple[Assignment, Assignment]:
    return (
        Assignment(device=0, layer_start=0, layer_end=num_layers // 2),
        Assignment(device=1, layer_start=num_layers // 2, layer_end=num_layers),
    )


def test_a_model_that_fits_is_resident_and_needs_no_ring() -> None:
    found = plan(planning(manifest([2] * 4), [spec(0, 30)]), Optimal())

    assert set(tiers(found).values()) == {Tier.DEVICE}
    assert found.stages[0].ring_bytes == found.stages[0].streamed_bytes == found.streamed_bytes_per_token == 0
    assert found.stages[0].resident_bytes == 10 * PAGE


def test_units_are_listed_in_order_of_execution() -> None:
    found = plan(planning(manifest([2] * 3), [spec(0, 30)]), Optimal())

    assert list(tiers(found)) == ["embedding", "layer.0", "layer.1", "layer.2", "head"]


def test_what_does_not_fit_streams_evenly_through_a_ring_of_three() -> None:
    # 8 layers of 2 pages and a head of 1: in 14 pages, a ring of 3 x 2 leaves 8: 4 layers, not 3 and the head.
    found = plan(planning(manifest([2] * 8), [spec(0, 14.2)]), Optimal())

    streamed = [name for name, tier in tiers(found).items() if tier is Tier.DISK and name.startswith("layer")]
    assert streamed == ["layer.1", "layer.3", "layer.5", "layer.7"]
    assert found.stages[0].ring_bytes == 6 * PAGE
    assert found.stages[0].streamed_bytes == 9 * PAGE


def test_kv_is_counted_for_every_slot_and_layer_in_the_compute_dtype() -> None:
    model = manifest([2] * 3, kv_elements_per_token=(10, 20, 30))
    found = plan(planning(model, [spec(0, 100)], context_tokens=100, num_slots=3), Optimal())

    # 100 tokens take 7 blocks of 16.
    assert found.stages[0].kv_bytes == 3 * 7 * 16 * 60 * 4


def test_kv_in_int8_has_a_byte_for_each_element_and_a_scale_for_each_head() -> None:
    model = manifest([2] * 2, kv_elements_per_token=(32, 40))
    found = plan(planning(model, [spec(0, 100)], context_tokens=32, kv_dtype="int8", block_tokens=8), Optimal())

    assert found.stages[0].kv_bytes == 32 * (32 + 2 * 4 + 40 + 3 * 4)


def test_workspace_holds_activations_a_conversion_and_the_logits() -> None:
    model = manifest([2] * 2, hidden_size=8, vocab_size=50)
    unquantised = plan(planning(model, [spec(0, 100)], max_step_tokens=16, max_logit_rows=2), Optimal())

    # Layer matrices of the toy model are 1 x 1: widest side 1.
    assert unquantised.stages[0].workspace_bytes == 16 * (8 * 8 + 3 * 1) * 4 + 2 * 50 * 2 * 4


def test_a_step_has_no_more_rows_of_logits_than_tokens() -> None:
    model = manifest([2] * 2, vocab_size=50)
    few, many = (plan(planning(model, [spec(0, 100)], max_logit_rows=rows), Optimal()) for rows in (1, 100))

    assert few.stages[0].workspace_bytes == many.stages[0].workspace_bytes


def test_a_fraction_of_nothing_streams_all_layers_and_the_head() -> None:
    found = plan(planning(manifest([2] * 4), [spec(0, 100)], resident_fraction=0.0), Optimal())

    assert set(tiers(found).values()) == {Tier.DISK}
    assert found.streamed_bytes_per_token == 9 * PAGE


@pytest.mark.parametrize(("fraction", "resident"), [(0.5, 4), (1 / 4, 2), (1.0, 8)])
def test_a_fraction_caps_the_resident_layers_exactly(fraction: float, resident: int) -> None:
    model = manifest([2] * 8, head=0)
    found = plan(planning(model, [spec(0, 100)], resident_fraction=fraction), Optimal())

    layers = [tier for name, tier in tiers(found).items() if name.startswith("layer")]
    assert layers.count(Tier.DEVICE) == resident


def test_a_tied_head_on_the_first_stage_is_one_group_with_the_embedding() -> None:
    found = plan(planning(manifest([2] * 4, embedding=3, tied=True), [spec(0, 100)], resident_fraction=0.0), Optimal())

    assert [u.unit_id for u in found.stages[0].units].count("embedding") == 1
    assert found.streamed_bytes_per_token == (8 + 1 + 3) * PAGE
    assert found.stages[0].ring_bytes == 3 * 4 * PAGE


def test_a_tied_head_on_another_stage_lists_the_embedding_again() -> None:
    model = manifest([2] * 4, embedding=3, tied=True)
    found = plan(planning(model, [spec(0, 30), spec(1, 30)], assignment=halves(4)), Optimal())

    assert "embedding" in tiers(found, 0)
    assert "embedding" in tiers(found, 1)
    assert found.stages[1].resident_bytes == (4 + 1 + 3) * PAGE


def test_an_untied_embedding_gives_way_to_layers_and_costs_no_streaming() -> None:
    model = manifest([2] * 4, embedding=3, head=1)
    found = plan(planning(model, [spec(0, 11)]), Optimal())

    assert tiers(found)["embedding"] is Tier.DISK
    assert found.streamed_bytes_per_token == 0
    assert any("embedding" in note for note in found.notes)


def test_streamed_units_wait_in_host_memory_where_the_device_has_its_own() -> None:
    gpu = spec(0, 12, "cuda")
    inputs = planning(manifest([2] * 8), [gpu], {gpu.id: profile(gpu, copies=4)}, host=host(disk=0.1, memory_pages=4))

    held = list(tiers(plan(inputs, Optimal())).values())

    assert held.count(Tier.HOST) == 2
    assert Tier.DISK in held


def test_host_memory_of_other_deployments_is_left_alone() -> None:
    gpu = spec(0, 12, "cuda")
    inputs = planning(manifest([2] * 8), [gpu], {gpu.id: profile(gpu, copies=4)}, host=host(memory_pages=4))

    found = plan(replace(inputs, reserved_host_bytes=4 * PAGE), Optimal())

    assert Tier.HOST not in tiers(found).values()


def test_what_others_hold_in_host_memory_is_shared_and_takes_no_room() -> None:
    gpu = spec(0, 12, "cuda")
    inputs = planning(manifest([2] * 8), [gpu], {gpu.id: profile(gpu, copies=4)}, host=host(disk=0.1, memory_pages=2))
    inputs = replace(inputs, resident_fraction=0.0)
    alone = plan(inputs, Optimal())
    held = frozenset({"layer.2", "layer.5", "layer.6"})

    found = plan(replace(inputs, held_unit_ids=held), Optimal())

    waiting = {unit_id for unit_id, tier in tiers(found).items() if tier is Tier.HOST}
    assert held < waiting
    assert len(waiting) == len(held) + 1  # two pages are left: one more layer
    assert list(tiers(alone).values()).count(Tier.HOST) == 1
    assert found.gap == 0
    assert alone.stages[0].cost.disk_seconds - found.stages[0].cost.disk_seconds == pytest.approx(3 * 2 / 0.1 * 1e-3)


def test_of_groups_of_one_size_those_are_streamed_that_others_hold() -> None:
    gpu = spec(0, 14.2, "cuda")
    inputs = planning(manifest([2] * 8), [gpu], {gpu.id: profile(gpu, copies=4)}, host=host(disk=0.1))
    held = frozenset({"layer.0", "layer.3", "layer.4"})

    found = plan(replace(inputs, held_unit_ids=held), Optimal())

    assert {unit_id for unit_id, tier in tiers(found).items() if tier is Tier.HOST} == held
    on_disk = [name for name, tier in tiers(found).items() if tier is Tier.DISK and name != "embedding"]
    assert len(on_disk) == 2  # of four layers and the head that do not fit
    assert found.gap == 0


def test_held_units_are_of_no_use_to_a_device_in_host_memory() -> None:
    inputs = planning(manifest([2] * 8), [spec(0, 12)], host=host(disk=0.1))

    assert plan(replace(inputs, held_unit_ids=frozenset({"layer.1"})), Optimal()) == plan(inputs, Optimal())


def test_experts_of_a_stage_that_keeps_nothing_have_the_least_cache() -> None:
    found = plan(planning(with_experts(), [spec(0, 100)], resident_fraction=0.0), Optimal())
    stage = found.stages[0]

    assert list(tiers(found))[1:6] == ["layer.0", *(f"layer.0.expert.{e}" for e in range(4))]
    assert all(tiers(found)[f"layer.1.expert.{e}"] is Tier.DISK for e in range(4))
    assert stage.experts is not None
    assert [(c.slot_bytes, c.num_slots, c.num_experts) for c in stage.experts.caches] == [(PAGE, 2, 8)]
    # A token goes to one of four in each of two layers, and two of eight are cached.
    assert stage.experts.bytes_per_token == 2 * PAGE
    assert found.streamed_bytes_per_token == (2 * 1 + 1 + 2 * (1 - 2 / 8)) * PAGE
    # One page a millisecond; of four experts one is computed: (1 + 1) for each layer, and the head.
    assert stage.cost.compute_seconds == pytest.approx((2 * 2 + 1) * 1e-3)
    assert stage.total_bytes == stage.ring_bytes + 2 * PAGE + stage.kv_bytes + stage.workspace_bytes


def test_experts_that_fit_are_resident_and_need_no_cache() -> None:
    found = plan(planning(with_experts(), [spec(0, 100)]), Optimal())

    assert found.stages[0].experts is None
    assert set(tiers(found).values()) == {Tier.DEVICE}
    assert found.stages[0].resident_bytes == (2 * 5 + 2) * PAGE
    assert found.streamed_bytes_per_token == 0


@pytest.mark.parametrize("pages", range(5, 12))
def test_dense_parts_stay_first_and_the_cache_gets_every_slot_that_is_left(pages: int) -> None:
    # Two layers and the head are three pages; a little room is for KV and workspace.
    found = plan(planning(with_experts(), [spec(0, pages + 0.2)]), Optimal())
    stage = found.stages[0]

    assert tiers(found)["layer.0"] is tiers(found)["head"] is Tier.DEVICE
    if pages >= 11:
        assert stage.experts is None
        return
    assert stage.experts is not None
    assert stage.experts.caches[0].num_slots == pages - 3
    assert stage.experts.hit_rate == pytest.approx((pages - 3 + 0.2) / 8, abs=0.03)
    assert stage.total_bytes <= (pages + 0.2) * PAGE


def test_a_budget_below_two_experts_is_refused_with_the_smallest_that_works() -> None:
    model = with_experts()
    with pytest.raises(DoesNotFit, match="only 2 experts are cached") as caught:
        plan(planning(model, [spec(0, 2)]), Optimal())
    told = re.search(r"(\d+) bytes\) on cpu:0", caught.value.message)
    assert told is not None
    least = int(told.group(1))

    def fits(num_bytes: int) -> bool:
        device = replace(spec(0, 0), memory_bytes=num_bytes)
        try:
            return plan(planning(model, [device]), Optimal()).stages[0].total_bytes <= num_bytes
        except DoesNotFit:
            return False

    assert fits(least)
    assert not fits(least - 1)


def test_a_gpu_has_a_second_cache_of_experts_in_host_memory() -> None:
    gpu = spec(0, 6.2, "cuda")
    profiles = {gpu.id: profile(gpu, copies=4)}
    without = plan(planning(with_experts(), [gpu], profiles), Optimal()).stages[0]
    found = plan(planning(with_experts(), [gpu], profiles, host=host(memory_pages=6)), Optimal()).stages[0]

    assert found.experts is not None
    assert [(c.num_slots, c.num_host_slots) for c in found.experts.caches] == [(3, 6)]
    assert found.cost.host_seconds == without.cost.host_seconds
    assert found.cost.disk_seconds == pytest.approx(2 * (1 - 6 / 8) * 1e-3)


def test_experts_of_two_sizes_have_slots_of_two_sizes_in_proportion() -> None:
    dense = manifest([1] * 2, num_experts=4, num_experts_per_token=1)
    experts = [unit(UnitKind.EXPERT, 1 + layer, layer=layer, expert=e) for layer in (0, 1) for e in range(4)]
    model = replace(dense, units=(*dense.units, *experts))
    # 4 x 2 and 4 x 1 pages of experts; beside the dense pages 9.1 are left.
    stage = plan(planning(model, [spec(0, 3 + 9.1 + 0.1)]), Optimal()).stages[0]

    assert stage.experts is not None
    slots = {cache.slot_bytes // PAGE: cache.num_slots for cache in stage.experts.caches}
    assert slots == {2: 3, 1: 3}
    assert stage.experts.cache_bytes == 9 * PAGE


def with_experts() -> ModelManifest:
    """Two layers of a page, each with four experts of a page, of which a token goes to one; a head of a page."""
    dense = manifest([1] * 2, num_experts=4, num_experts_per_token=1)
    experts = [unit(UnitKind.EXPERT, 1, layer=layer, expert=e) for layer in (0, 1) for e in range(4)]
    return replace(dense, units=(*dense.units, *experts))


def test_stage_time_is_the_largest_part_plus_the_hop_and_the_sums_are_the_plans() -> None:
    link = LinkProfile(source="cpu:0", target="cpu:1", transport="tcp", latency_seconds=0.005, bytes_per_second=1e9)
    inputs = planning(
        manifest([2] * 8), [spec(0, 9), spec(1, 9)], assignment=halves(8), links=(link,), host=host(disk=0.5)
    )

    found = plan(inputs, Optimal())

    first, last = (stage.cost for stage in found.stages)
    assert first.seconds == pytest.approx(max(first.compute_seconds, first.disk_seconds) + first.hop_seconds)
    assert first.hop_seconds == pytest.approx(0.005, rel=1e-3)
    assert last.hop_seconds == 0
    assert found.seconds_per_token == pytest.approx(first.seconds + last.seconds)
    assert [stage.transport for stage in found.stages] == ["tcp", ""]


def test_one_disk_serves_all_stages_so_the_period_counts_all_their_bytes() -> None:
    inputs = planning(manifest([2] * 8), [spec(0, 7.5), spec(1, 7.5)], assignment=halves(8), host=host(disk=0.25))

    found = plan(inputs, Optimal())

    assert all(stage.cost.binding == "disk" for stage in found.stages)
    assert found.period_seconds == pytest.approx(found.streamed_bytes_per_token / (0.25 * PAGE * 1000))
