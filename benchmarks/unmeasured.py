"""Plans for one device, where no cost matters because the layers have nowhere else to go."""

import itertools
from collections.abc import Sequence

from teengined.core.device import ComputePoint, DeviceProfile, DeviceSpec, HostProfile
from teengined.core.model import ModelManifest
from teengined.core.plan import Plan
from teengined.interfaces.policy import Assignment
from teengined.interfaces.registry import PluginRegistry
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan

__all__ = ["plan_without_measuring", "single_device_plan"]

_EQUAL_COST = 1e-10
_EQUAL_RATE = 1e9


def single_device_plan(manifest: ModelManifest, spec: DeviceSpec, resident: float, context_tokens: int) -> Plan:
    """Return the plan that keeps at most the share `resident` of the model on the only device."""
    return plan_without_measuring(
        manifest, ((spec, manifest.num_layers),), resident_fraction=resident, context_tokens=context_tokens
    )


def plan_without_measuring(
    manifest: ModelManifest,
    layers: Sequence[tuple[DeviceSpec, int]],
    *,
    resident_fraction: float | None,
    context_tokens: int,
    num_slots: int = 1,
) -> Plan:
    """Return the plan that gives each device the stated number of layers; predicted times mean nothing."""
    devices = tuple(spec for spec, _ in layers)
    host = HostProfile(
        host="here",
        disk_read_bytes_per_second=_EQUAL_RATE,
        memory_read_bytes_per_second=_EQUAL_RATE,
        memory_bytes=0,
    )
    planning = PlanningInput(
        manifest=manifest,
        devices=devices,
        profiles={spec.id: _profile(spec, manifest) for spec in devices},
        host=host,
        context_tokens=context_tokens,
        num_slots=num_slots,
        resident_fraction=resident_fraction,
        assignment=_assignment([count for _, count in layers]),
    )
    return plan(planning, PluginRegistry.load().placement_policy("optimal"))


def _assignment(num_layers: Sequence[int]) -> tuple[Assignment, ...]:
    ends = list(itertools.accumulate(num_layers))
    return tuple(
        Assignment(device=index, layer_start=end - count, layer_end=end)
        for index, (count, end) in enumerate(zip(num_layers, ends, strict=True))
    )


def _profile(spec: DeviceSpec, manifest: ModelManifest) -> DeviceProfile:
    return DeviceProfile(
        device_id=spec.id,
        compute_dtype=manifest.compute_dtype,
        compute=tuple(
            ComputePoint(precision=precision, num_tokens=1, seconds_per_parameter=_EQUAL_COST)
            for precision in {name for unit in manifest.units for name in unit.parameters_by_precision}
        ),
        layer_overhead_seconds=_EQUAL_COST,
        host_to_device_bytes_per_second=None,
    )
