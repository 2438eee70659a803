"""The cost model: seconds and bytes of any stage on any device, from what was measured. Scalars only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from teengined.core.device import DeviceProfile, LinkProfile
from teengined.core.errors import ConfigError
from teengined.core.model import ModelManifest, UnitKind
from teengined.core.precision_choice import runnable_compute_dtype
from teengined.placement.groups import Group, ModelGroups, group_units
from teengined.placement.inputs import PlanningInput

__all__ = ["DTYPE_BYTES", "CostModel", "cost_model_of", "kv_token_bytes", "workspace_bytes"]

DTYPE_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

# Rows of width `hidden_size` alive at once inside a layer: residual, normed, query, key, value, attention output,
# projection, MLP output.
_HIDDEN_ROWS = 8
# Rows of the widest matrix alive at once inside an MLP: gate, up, their product.
_WIDE_ROWS = 3
# fp32 rows of the vocabulary for each row that is drawn or told of: logits and their softmax.
_LOGIT_ROWS = 2
# Elements of int8 KV that share one fp32 scale, at the least: one head of one token. No architecture's are smaller.
_SCALED_ELEMENTS = 16


@dataclass(frozen=True, slots=True)
class CostModel:
    """`planning`, read once: device order is `planning.devices`, everything else is looked up by index."""

    planning: PlanningInput
    groups: ModelGroups
    profiles: tuple[DeviceProfile, ...]
    compute_dtypes: tuple[str, ...]
    links: Mapping[tuple[str, str], LinkProfile]
    workspaces: Mapping[tuple[str, bool], int]
    """`workspace_bytes` by compute dtype and whether the stage has the head."""

    @property
    def num_layers(self) -> int:
        """Layers to place."""
        return len(self.groups.layers)

    def budget_bytes(self, device: int) -> int:
        """Return what this deployment may take of a device."""
        spec = self.planning.devices[device]
        return spec.memory_bytes - self.planning.reserved_bytes.get(spec.id, 0)

    def kv_bytes_of_layers(self, device: int) -> list[int]:
        """Return, for each layer, the KV of all slots at the full context, in whole blocks."""
        planning, dtype = self.planning, self.compute_dtypes[device]
        tokens = planning.num_blocks * planning.block_tokens
        return [
            tokens * kv_token_bytes(elements, planning.kv_dtype, dtype)
            for elements in planning.manifest.kv_elements_per_token
        ]

    def workspace_bytes(self, device: int, *, has_head: bool) -> int:
        """Return `workspace_bytes` for a stage on this device."""
        return self.workspaces[self.compute_dtypes[device], has_head]

    def layer_seconds(self, device: int, num_tokens: int) -> list[float]:
        """Return each layer's compute time in one step of `num_tokens`."""
        overhead = self.profiles[device].layer_overhead_seconds
        return [overhead + self._group_seconds(device, group, num_tokens) for group in self.groups.layers]

    def head_seconds(self, device: int) -> float:
        """Return the time of the head for one row: only the last token of a prompt is sampled."""
        return self._group_seconds(device, self.groups.head, 1)

    def host_tier_bytes(self) -> int:
        """Return what the host tier may hold for this deployment, beside what it holds for others and shares."""
        return max(0, self.planning.host.memory_bytes - self.planning.reserved_host_bytes)

    def held_bytes(self, group: Group) -> int:
        """Return how much of a group's dense units the host tier holds already, for others."""
        held = self.planning.held_unit_ids
        return sum(unit.size_bytes for unit in group.dense if unit.id in held) if held else 0

    def uses_host_tier(self, device: int) -> bool:
        """Whether the device has memory of its own, which units can wait outside of."""
        return self.profiles[device].host_to_device_bytes_per_second is not None

    def link(self, source: int, target: int) -> LinkProfile:
        """Return the path that a plan takes between two devices."""
        devices = self.planning.devices
        pair = (devices[source].id, devices[target].id)
        return self.links.get(pair) or LinkProfile(
            source=pair[0],
            target=pair[1],
            transport=self.planning.prefer_transport or self.planning.default_transport,
            latency_seconds=self.planning.default_latency_seconds,
            bytes_per_second=self.planning.default_bytes_per_second,
        )

    def hop_seconds(self, source: int, target: int, num_tokens: int = 1) -> float:
        """Return the time of one step's activations from `source` to `target`."""
        link = self.link(source, target)
        return link.latency_seconds + num_tokens * self._activation_bytes(source) / link.bytes_per_second

    def _activation_bytes(self, device: int) -> int:
        return self.planning.manifest.hidden_size * DTYPE_BYTES[self.compute_dtypes[device]]

    def _group_seconds(self, device: int, group: Group, num_tokens: int) -> float:
        manifest = self.planning.manifest
        seconds = self._product_seconds(device, group.dense_parameters, num_tokens)
        if group.expert_parameters and manifest.num_experts:
            # Every token goes to `num_experts_per_token` experts; rows spread over those that are touched at all.
            load = num_tokens * manifest.num_experts_per_token / manifest.num_experts
            rows = max(1, math.ceil(load))
            seconds += min(1.0, load) * self._product_seconds(device, group.expert_parameters, rows)
        return seconds

    def _product_seconds(self, device: int, parameters: Mapping[str, int], num_tokens: int) -> float:
        profile = self.profiles[device]
        try:
            return sum(
                number * profile.seconds_per_parameter(precision, num_tokens)
                for precision, number in parameters.items()
            )
        except KeyError as error:
            raise ConfigError(
                f"device {profile.device_id} was never measured with precision {error.args[0]}",
                hint="measure the device again with that precision, or convert the model to another one",
            ) from error


def cost_model_of(planning: PlanningInput) -> CostModel:
    """Return the cost model of a planning input.

    Raises:
        ConfigError: a device has no profile, or not for a precision of the model.
        PackageError: the manifest lacks units.
    """
    for device in planning.devices:
        if device.id not in planning.profiles:
            raise ConfigError(f"device {device.id} was never measured", hint="measure it, or leave it out of the plan")
    profiles = tuple(planning.profiles[device.id] for device in planning.devices)
    # Of a stage's activations and KV.
    dtypes = tuple(runnable_compute_dtype(profile, planning.manifest.compute_dtype) for profile in profiles)
    return CostModel(
        planning=planning,
        groups=group_units(planning.manifest),
        profiles=profiles,
        compute_dtypes=dtypes,
        links=_best_links(planning),
        workspaces={
            (dtype, has_head): workspace_bytes(planning, dtype, has_head=has_head)
            for dtype in set(dtypes)
            for has_head in (False, True)
        },
    )


def kv_token_bytes(num_elements: int, kv_dtype: str, compute_dtype: str) -> int:
    """Return what one layer keeps of one token. int8: a byte for each element, and fp32 scales, counted generously."""
    if kv_dtype == "int8":
        return num_elements + math.ceil(num_elements / _SCALED_ELEMENTS) * DTYPE_BYTES["fp32"]
    return num_elements * DTYPE_BYTES[compute_dtype]


def workspace_bytes(planning: PlanningInput, compute_dtype: str, *, has_head: bool) -> int:
    """Return what a stage may allocate beside weights, KV and ring.

    With b bytes in the compute dtype, T = `max_step_tokens`, h = hidden size, w = the widest side of a layer's matrix:
    T * (8 h + 3 w) * b for activations; plus the largest matrix of a layer * b where some unit is stored in another
    precision, for its conversion (the head is converted in tiles no larger than that); plus, on the stage with the
    head, 2 fp32 rows of the vocabulary for each of `max_logit_rows`, of which a step has no more than it has tokens.
    """
    manifest, element_bytes = planning.manifest, DTYPE_BYTES[compute_dtype]
    widest, largest_matrix = _matrix_bounds(manifest)
    rows = _HIDDEN_ROWS * manifest.hidden_size + _WIDE_ROWS * widest
    total = planning.max_step_tokens * rows * element_bytes
    if any(set(unit.parameters_by_precision) - {compute_dtype} for unit in manifest.units):
        total += largest_matrix * element_bytes
    if has_head:
        num_rows = min(planning.max_logit_rows, planning.max_step_tokens)
        total += num_rows * manifest.vocab_size * _LOGIT_ROWS * DTYPE_BYTES["fp32"]
    return total


def _matrix_bounds(manifest: ModelManifest) -> tuple[int, int]:
    """Return the widest side and the number of elements of the largest matrix in any layer."""
    shapes = {
        tensor.parameter_shape or tensor.shape
        for unit in manifest.units
        if unit.kind in (UnitKind.LAYER, UnitKind.EXPERT)
        for tensor in unit.tensors
        if tensor.part == "data" and len(tensor.shape) >= 2
    }
    # A manifest without tensor tables (an estimate before a download) gets the usual MLP ratio.
    usual = (manifest.hidden_size, 4 * manifest.hidden_size)
    return max(max(shape) for shape in shapes or {usual}), max(math.prod(shape) for shape in shapes or {usual})


def _best_links(planning: PlanningInput) -> dict[tuple[str, str], LinkProfile]:
    """Keep one link for each pair: the preferred transport's, else the quickest for one token."""

    def rank(link: LinkProfile) -> tuple[bool, float]:
        token_bytes = planning.manifest.hidden_size * DTYPE_BYTES["fp32"]
        return link.transport != planning.prefer_transport, link.latency_seconds + token_bytes / link.bytes_per_second

    best: dict[tuple[str, str], LinkProfile] = {}
    for link in planning.links:
        pair = (link.source, link.target)
        if pair not in best or rank(link) < rank(best[pair]):
            best[pair] = link
    return best
