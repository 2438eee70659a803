"""The planner's way in: what it refuses and how it says so, and which numbers it prints."""

import subprocess
import sys
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from teengined.core.device import LinkProfile
from teengined.core.errors import ConfigError, ContextTooLong, DoesNotFit, PackageError, PluginError, RequestError
from teengined.core.plan import Objective, Plan
from teengined.core.records import from_mapping, to_mapping
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined.placement.costs import cost_model_of
from teengined.placement.planner import plan
from teengined.placement.shortage import longest_context, smallest_budgets, smallest_equal_budget
from tests.unit.placement.fleets import PAGE, Optimal, host, manifest, planning, profile, spec


class Stubborn(PlacementPolicy):
    """Answers what it was told to."""

    name: ClassVar[str] = "stubborn"

    def __init__(self, *stages: tuple[int, int, int]) -> None:
        self._stages = stages

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        return tuple(Assignment(device=d, layer_start=s, layer_end=e) for d, s, e in self._stages)


class Raising(PlacementPolicy):
    name: ClassVar[str] = "raising"

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        raise ZeroDivisionError("oops")


def test_a_context_above_the_models_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextTooLong, match=r"5000 tokens.*4096"):
        plan(planning(manifest([2]), [spec(0, 30)], context_tokens=5000), Optimal())


def test_a_budget_too_small_for_one_layer_names_the_smallest_that_works() -> None:
    inputs = planning(manifest([20] * 4), [spec(0, 10)])
    least = smallest_budgets(cost_model_of(inputs))[0]

    with pytest.raises(DoesNotFit, match=f"{least} bytes"):
        plan(inputs, Optimal())


@pytest.mark.parametrize("layers", [[3], [2, 2, 2], [5, 1, 1, 4], [2] * 9])
def test_the_smallest_budget_works_and_one_byte_less_does_not(layers: list[int]) -> None:
    inputs = planning(manifest(layers, head=4, tied=True), [spec(0, 0)], num_slots=2)
    least = smallest_budgets(cost_model_of(inputs))[0]

    enough = replace(inputs, devices=(replace(inputs.devices[0], memory_bytes=least),))
    assert plan(enough, Optimal()).stages[0].total_bytes <= least
    with pytest.raises(DoesNotFit):
        plan(replace(inputs, devices=(replace(inputs.devices[0], memory_bytes=least - 1),)), Optimal())


@pytest.mark.parametrize("num_devices", [2, 3, 9])
def test_the_smallest_equal_budget_works_and_one_byte_less_does_not(num_devices: int) -> None:
    inputs = planning(manifest([5, 1, 1, 4, 2, 2, 9, 1, 1, 3]), [spec(i, 0) for i in range(num_devices)])
    least = smallest_equal_budget(cost_model_of(inputs))

    def with_budget(num_bytes: int) -> Plan:
        devices = tuple(replace(device, memory_bytes=num_bytes) for device in inputs.devices)
        return plan(replace(inputs, devices=devices), Optimal())

    assert all(stage.total_bytes <= least for stage in with_budget(least).stages)
    with pytest.raises(DoesNotFit):
        with_budget(least - 1)


@pytest.mark.parametrize("num_devices", [1, 3, 9])
def test_when_only_kv_is_too_large_the_longest_context_is_told_and_works(num_devices: int) -> None:
    devices = [spec(index, 10 + index) for index in range(num_devices)]
    inputs = planning(manifest([1] * 9, kv_elements_per_token=(40,) * 9), devices, context_tokens=4096)
    longest = longest_context(cost_model_of(inputs))

    assert longest is not None
    with pytest.raises(DoesNotFit, match=f"largest context that fits is {longest} tokens"):
        plan(inputs, Optimal())
    plan(replace(inputs, context_tokens=longest), Optimal())
    with pytest.raises(DoesNotFit):
        plan(replace(inputs, context_tokens=longest + 1), Optimal())


def test_what_other_deployments_hold_is_not_given_away() -> None:
    inputs = planning(manifest([2] * 8), [spec(0, 14)])

    free, shared = plan(inputs, Optimal()), plan(replace(inputs, reserved_bytes={"cpu:0": 4 * PAGE}), Optimal())

    assert free.streamed_bytes_per_token < shared.streamed_bytes_per_token
    assert shared.stages[0].total_bytes <= 10 * PAGE


def test_a_device_that_only_adds_a_hop_is_left_out() -> None:
    inputs = planning(manifest([2] * 4), [spec(0, 100), spec(1, 100)], default_latency_seconds=0.1)

    found = plan(inputs, Optimal())

    assert len(found.stages) == 1
    assert found.unused_device_ids == ("cpu:1",)


def test_throughput_uses_both_devices_where_latency_uses_one() -> None:
    inputs = planning(manifest([2] * 4), [spec(0, 100), spec(1, 100)], objective=Objective.THROUGHPUT)

    found = plan(inputs, Optimal())

    assert len(found.stages) == 2
    assert found.period_seconds < found.seconds_per_token
    assert found.gap == 0


def test_a_dictated_assignment_is_followed_and_its_gap_told() -> None:
    stages = (
        Assignment(device=1, layer_start=0, layer_end=1),
        Assignment(device=0, layer_start=1, layer_end=4),
    )
    inputs = planning(manifest([2] * 4), [spec(0, 100), spec(1, 100)], default_latency_seconds=0.1, assignment=stages)

    found = plan(inputs, Optimal())

    assert [stage.device_id for stage in found.stages] == ["cpu:1", "cpu:0"]
    assert found.policy == "forced"
    assert found.gap > 0.5


def test_a_dictated_assignment_that_misses_layers_is_the_askers_mistake() -> None:
    stages = (Assignment(device=0, layer_start=0, layer_end=3),)

    with pytest.raises(RequestError, match="end at layer 3 of 4"):
        plan(planning(manifest([2] * 4), [spec(0, 100)], assignment=stages), Optimal())


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        (((0, 0, 2), (0, 2, 4)), "use device 0 twice"),
        (((0, 0, 2), (1, 3, 4)), "go from layer 2 to layers 3 to 4"),
        (((0, 0, 0), (1, 0, 4)), "go from layer 0 to layers 0 to 0"),
        (((7, 0, 4),), "name device 7 of 2"),
        ((), "end at layer 0 of 4"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_named(stages: tuple[tuple[int, int, int], ...], fault: str) -> None:
    with pytest.raises(PluginError, match=f"stubborn gave stages that {fault}"):
        plan(planning(manifest([2] * 4), [spec(0, 100), spec(1, 100)]), Stubborn(*stages))


def test_a_policy_that_raises_is_named_and_its_error_kept() -> None:
    with pytest.raises(PluginError, match="raising") as caught:
        plan(planning(manifest([2] * 4), [spec(0, 100)]), Raising())

    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_policy_that_overfills_a_device_is_told_what_the_stage_needs() -> None:
    inputs = planning(manifest([2] * 4), [spec(0, 100), spec(1, 3)])

    with pytest.raises(DoesNotFit, match=r"stubborn puts layers 1 to 3 on cpu:1.*need at least"):
        plan(inputs, Stubborn((0, 0, 1), (1, 1, 4)))


def test_no_device_and_an_unmeasured_device_are_configuration_errors() -> None:
    model = manifest([2])
    with pytest.raises(ConfigError, match="no device"):
        plan(planning(model, []), Optimal())
    with pytest.raises(ConfigError, match="cpu:1 was never measured"):
        plan(planning(model, [spec(0, 9), spec(1, 9)], {"cpu:0": profile(spec(0, 9))}), Optimal())


def test_an_unmeasured_precision_is_named_with_its_device() -> None:
    model = manifest([2])
    model = replace(model, units=tuple(replace(unit, precision="int3") for unit in model.units))

    with pytest.raises(ConfigError, match=r"cpu:0.*int3"):
        plan(planning(model, [spec(0, 90)]), Optimal())


def test_a_manifest_without_a_layer_is_a_package_error() -> None:
    model = replace(manifest([2, 2]), num_layers=3, kv_elements_per_token=(1, 1, 1))

    with pytest.raises(PackageError, match="layer 2"):
        plan(planning(model, [spec(0, 90)]), Optimal())


def test_a_cpu_that_crawls_in_fp16_computes_in_what_it_is_fast_at() -> None:
    model, device = manifest([2], compute_dtype="fp16", kv_elements_per_token=(10,)), spec(0, 90)
    measured = profile(device)
    crawling = tuple(
        replace(point, seconds_per_parameter=100 * point.seconds_per_parameter) if point.precision == "fp16" else point
        for point in measured.compute
    )
    inputs = planning(model, [device], {device.id: replace(measured, compute=crawling)}, context_tokens=96)

    found = plan(inputs, Optimal())

    assert found.stages[0].compute_dtype == "fp32"
    assert found.stages[0].kv_bytes == 96 * 10 * 4
    assert any("fp32" in note for note in found.notes)


def test_a_gpu_keeps_the_packages_dtype() -> None:
    gpu = spec(0, 90, "cuda")
    inputs = planning(manifest([2], compute_dtype="fp16"), [gpu], {gpu.id: profile(gpu, copies=5)})

    assert plan(inputs, Optimal()).stages[0].compute_dtype == "fp16"


def test_the_preferred_transport_is_taken_where_it_was_measured() -> None:
    links = tuple(
        LinkProfile(source="cpu:0", target="cpu:1", transport=name, latency_seconds=seconds, bytes_per_second=1e9)
        for name, seconds in (("tcp", 2e-4), ("shm", 1e-4))
    )
    stages = (Assignment(device=0, layer_start=0, layer_end=1), Assignment(device=1, layer_start=1, layer_end=2))
    inputs = planning(manifest([2] * 2), [spec(0, 90), spec(1, 90)], links=links, assignment=stages)

    assert plan(inputs, Optimal()).stages[0].transport == "shm"
    assert plan(replace(inputs, prefer_transport="tcp"), Optimal()).stages[0].transport == "tcp"
    assert plan(replace(inputs, links=(), prefer_transport="inproc"), Optimal()).stages[0].transport == "inproc"


def test_prefill_streams_once_for_each_chunk() -> None:
    inputs = planning(
        manifest([2] * 4), [spec(0, 100)], context_tokens=512, resident_fraction=0.0, host=host(disk=0.001)
    )

    whole = plan(replace(inputs, max_step_tokens=512), Optimal())
    chunked = plan(replace(inputs, max_step_tokens=128), Optimal())

    assert chunked.prefill_seconds == pytest.approx(4 * whole.prefill_seconds)


def test_a_plan_survives_the_wire() -> None:
    found = plan(planning(manifest([2] * 4), [spec(0, 9), spec(1, 9)]), Optimal())

    assert from_mapping(Plan, to_mapping(found)) == found


@pytest.mark.parametrize(
    "fields", [{"context_tokens": 0}, {"num_slots": 0}, {"ring_slots": 1}, {"resident_fraction": 1.5}]
)
def test_numbers_that_no_plan_can_mean_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        planning(manifest([2]), [spec(0, 9)], **fields)


def test_importing_the_planner_loads_neither_numpy_nor_torch() -> None:
    program = "import sys, teengined.placement.planner, teengined.placement.explain, teengined.placement.advice\n"
    program += "print(sorted({'numpy', 'torch'} & set(sys.modules)))"

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert finished.stdout.strip() == "[]"
