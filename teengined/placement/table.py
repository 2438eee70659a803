"""Costs of every possible stage on every device, as arrays: what the solvers read.

Legend: d device, s first layer of a stage, e end of its layers (exclusive, 0 … L). Entries with e <= s are infinite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teengined.placement.costs import CostModel
from teengined.placement.experts import LEAST_SLOTS, expert_counts, share_per_token, slot_classes, slot_sizes
from teengined.placement.groups import Group
from teengined.placement.residency import (
    ExpertSizes,
    FloatArray,
    IntArray,
    StageSizes,
    choose_resident,
    most_saved,
)

__all__ = [
    "StageTable",
    "build_table",
    "hop_table",
    "interval_sums",
    "last_column",
    "sizes_of_stage",
    "stage_sizes",
    "streaming_limit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Seconds of one decode step of every stage, without hops."""

    seconds_dse: FloatArray
    """Infinite where the stage does not fit."""
    disk_seconds_dse: FloatArray
    """The disk's share, which all stages of a host draw from one disk. Infinite as above."""
    exact: bool
    """No other choice of resident groups could make any stage faster."""


def stage_sizes(model: CostModel) -> StageSizes:
    """Return the sizes of groups of every stage, counts of shape [L, L + 1] (s, e)."""
    layer_sizes = [group.dense_bytes for group in model.groups.layers]
    head_size = model.groups.head.dense_bytes
    sizes = tuple(sorted({size for size in (*layer_sizes, head_size) if size}, reverse=True))
    has_head_se = last_column(model.num_layers)
    counts = tuple(
        np.maximum(interval_sums([int(layer == size) for layer in layer_sizes]), 0)
        + has_head_se * int(head_size == size)
        for size in sizes
    )
    return StageSizes(sizes=sizes, counts=counts, experts=_expert_sizes(model))


def sizes_of_stage(model: CostModel, groups: Sequence[Group]) -> StageSizes:
    """Return the sizes of one stage of these groups, as arrays without dimensions."""
    dense = [group.dense_bytes for group in groups]
    sizes = tuple(sorted({size for size in dense if size}, reverse=True))
    total = sum(group.expert_bytes for group in groups)
    classes = slot_classes(expert_counts(groups), slot_sizes(model.groups.layers))
    least = min(total, sum(each.least_slots * each.slot_bytes for each in classes))
    share = share_per_token(model.planning.manifest)
    return StageSizes(
        sizes=sizes,
        counts=tuple(np.asarray(dense.count(size)) for size in sizes),
        experts=ExpertSizes(total_bytes=np.asarray(total), least_bytes=np.asarray(least), share=share),
    )


def _expert_sizes(model: CostModel) -> ExpertSizes:
    """Return the routed experts of every stage, arrays as in `stage_sizes`."""
    layers = model.groups.layers
    total_se = np.maximum(interval_sums([group.expert_bytes for group in layers]), 0)
    least_se = np.zeros_like(total_se)
    sizes = slot_sizes(layers)
    classes = [slot_classes(expert_counts([group]), sizes) for group in layers]
    for size in sizes:
        numbers = [sum(each.num_experts for each in found if each.slot_bytes == size) for found in classes]
        least_se = least_se + np.minimum(np.maximum(interval_sums(numbers), 0), LEAST_SLOTS) * size
    share = share_per_token(model.planning.manifest)
    return ExpertSizes(total_bytes=total_se, least_bytes=np.minimum(least_se, total_se), share=share)


def streaming_limit(model: CostModel, total_bytes: IntArray) -> IntArray | None:
    """Return the most bytes of layers and head that may be resident, or None where no limit was asked for."""
    fraction = model.planning.resident_fraction
    if fraction is None:
        return None
    # The small surplus keeps fractions such as 1/3 from losing a whole layer to rounding.
    return np.floor(total_bytes * (fraction * (1 + 1e-9))).astype(np.int64)


def build_table(model: CostModel, host_bytes_of_device: Sequence[int], *, fractional: bool = False) -> StageTable:
    """Return the table.

    Args:
        model: What everything costs.
        host_bytes_of_device: For each device, what any one stage on it may keep in the host tier, beside what is held
            there for others and shared.
        fractional: Let a part of a group be resident: at least as fast as any plan, for lower bounds.
    """
    stage = stage_sizes(model)
    available_dse = np.stack([_available(model, device) for device in range(len(model.planning.devices))])
    ring_slots, limit_se = model.planning.ring_slots, streaming_limit(model, stage.total_bytes)
    if fractional:
        saved_dse = most_saved(stage, available_dse, ring_slots=ring_slots, limit=limit_se)
        dense_dse, experts_dse, exact = stage.bytes_per_token - saved_dse, np.zeros_like(saved_dse), False
    else:
        choice = choose_resident(stage, available_dse, ring_slots=ring_slots, limit=limit_se)
        saved_dse, exact = choice.saved_bytes, choice.exact
        dense_dse = stage.dense_bytes - choice.resident_bytes
        experts_dse = stage.experts.total_bytes - choice.cached_bytes
    possible_dse = (saved_dse >= 0) & _is_interval(model.num_layers)
    streamed = _Streamed(
        dense_dse=np.where(possible_dse, dense_dse, -1.0),
        experts_dse=np.where(possible_dse, experts_dse, 0.0),
        experts=stage.experts,
    )
    seconds_dse, disk_dse = _seconds(model, streamed, host_bytes_of_device)
    return StageTable(
        seconds_dse=np.where(possible_dse, seconds_dse, np.inf),
        disk_seconds_dse=np.where(possible_dse, disk_dse, np.inf),
        exact=exact,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Streamed:
    """Bytes that are not on the device, for every stage."""

    dense_dse: FloatArray
    experts_dse: FloatArray
    """Of all routed experts, not only of those that a token asks for."""
    experts: ExpertSizes


def hop_table(model: CostModel) -> FloatArray:
    """Return seconds of one token's activations, shape [source, target]; 0 on the diagonal."""
    devices = range(len(model.planning.devices))
    return np.array([[0.0 if a == b else model.hop_seconds(a, b) for b in devices] for a in devices])


def _seconds(
    model: CostModel, streamed: _Streamed, host_bytes_of_device: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    host_dse = np.asarray(host_bytes_of_device, dtype=np.float64)[:, None, None] + _held_bytes(model)
    share = streamed.experts.share
    # What is in host memory too need not come from the disk: dense groups first, then experts.
    left_dse = np.maximum(host_dse - np.maximum(streamed.dense_dse, 0), 0)
    behind_dse = np.minimum(streamed.experts_dse, np.maximum(streamed.experts.total_bytes - left_dse, 0))
    from_disk_dse = np.maximum(streamed.dense_dse - host_dse, 0) + share * behind_dse
    disk_dse = from_disk_dse / model.planning.host.disk_read_bytes_per_second
    copied_dse = streamed.dense_dse + share * streamed.experts_dse
    seconds_dse = np.empty_like(disk_dse)
    for device, profile in enumerate(model.profiles):
        compute_se = _interval_seconds(model.layer_seconds(device, 1))
        compute_se = compute_se + last_column(model.num_layers) * model.head_seconds(device)
        seconds_dse[device] = np.maximum(compute_se, disk_dse[device])
        if profile.host_to_device_bytes_per_second is not None:
            copies_se = copied_dse[device] / profile.host_to_device_bytes_per_second
            np.maximum(seconds_dse[device], copies_se, out=seconds_dse[device])
    return seconds_dse, disk_dse


def _held_bytes(model: CostModel) -> IntArray:
    """Return what each stage finds in the host tier because others hold it, where its device uses that tier.

    More than a stage can make use of, where it keeps some of these units on the device: a bound stays one.
    """
    held_se = np.maximum(interval_sums([model.held_bytes(group) for group in model.groups.layers]), 0)
    held_se = held_se + last_column(model.num_layers) * model.held_bytes(model.groups.head)
    uses_d = np.asarray([model.uses_host_tier(device) for device in range(len(model.profiles))], dtype=np.int64)
    return uses_d[:, None, None] * held_se


def _available(model: CostModel, device: int) -> IntArray:
    """Return what each stage on `device` has for weights and ring, shape [s, e]."""
    body = model.workspace_bytes(device, has_head=False)
    head = model.workspace_bytes(device, has_head=True)
    kv_se = interval_sums(model.kv_bytes_of_layers(device))
    return model.budget_bytes(device) - kv_se - body - last_column(model.num_layers) * (head - body)


def interval_sums(values: Sequence[int]) -> IntArray:
    """Return the sum of `values[s:e]` for every s and e, shape [L, L + 1]; meaningless below the diagonal."""
    prefix = np.concatenate([[0], np.cumsum(np.asarray(values, dtype=np.int64))])
    return prefix[None, :] - prefix[:-1, None]


def _interval_seconds(values: Sequence[float]) -> FloatArray:
    prefix = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    return prefix[None, :] - prefix[:-1, None]


def last_column(num_layers: int) -> IntArray:
    """Return 1 for stages that end with the last layer, which have the head, else 0; shape [L, L + 1]."""
    ends = np.zeros((num_layers, num_layers + 1), dtype=np.int64)
    ends[:, num_layers] = 1
    return ends


def _is_interval(num_layers: int) -> NDArray[np.bool_]:
    return np.arange(num_layers + 1)[None, :] > np.arange(num_layers)[:, None]
