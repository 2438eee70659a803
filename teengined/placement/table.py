"""Costs of every possible stage on every device, as arrays: what the solvers read.

Legend: d device, s first layer of a stage, e end of its layers (exclusive, 0 … L). Entries with e <= s are infinite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teengined.placement.costs import CostModel
from teengined.placement.residency import IntArray, StageSizes, choose_resident, most_bytes

__all__ = [
    "FloatArray",
    "StageTable",
    "build_table",
    "hop_table",
    "interval_sums",
    "last_column",
    "stage_sizes",
    "streaming_limit",
]

FloatArray = NDArray[np.float64]


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
    layer_sizes = [group.size_bytes for group in model.groups.layers]
    head_size = model.groups.head.size_bytes
    sizes = tuple(sorted({size for size in (*layer_sizes, head_size) if size}, reverse=True))
    has_head_se = last_column(model.num_layers)
    counts = tuple(
        np.maximum(interval_sums([int(layer == size) for layer in layer_sizes]), 0)
        + has_head_se * int(head_size == size)
        for size in sizes
    )
    return StageSizes(sizes=sizes, counts=counts)


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
        host_bytes_of_device: For each device, what any one stage on it may keep in the host tier.
        fractional: Let a part of a group be resident: at least as fast as any plan, for lower bounds.
    """
    stage = stage_sizes(model)
    total_se = stage.total_bytes
    available_dse = np.stack([_available(model, device) for device in range(len(model.planning.devices))])
    limit_se = streaming_limit(model, total_se)
    if fractional:
        resident_dse = most_bytes(stage, available_dse, ring_slots=model.planning.ring_slots, limit=limit_se)
        exact = False
    else:
        choice = choose_resident(stage, available_dse, ring_slots=model.planning.ring_slots, limit=limit_se)
        resident_dse, exact = choice.resident_bytes, choice.exact
    possible_dse = (resident_dse >= 0) & _is_interval(model.num_layers)
    streamed_dse = np.where(possible_dse, total_se - resident_dse, np.int64(-1))
    seconds_dse, disk_dse = _seconds(model, streamed_dse, host_bytes_of_device)
    return StageTable(
        seconds_dse=np.where(possible_dse, seconds_dse, np.inf),
        disk_seconds_dse=np.where(possible_dse, disk_dse, np.inf),
        exact=exact,
    )


def hop_table(model: CostModel) -> FloatArray:
    """Return seconds of one token's activations, shape [source, target]; 0 on the diagonal."""
    devices = range(len(model.planning.devices))
    return np.array([[0.0 if a == b else model.hop_seconds(a, b) for b in devices] for a in devices])


def _seconds(
    model: CostModel, streamed_dse: IntArray, host_bytes_of_device: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    host_d11 = np.asarray(host_bytes_of_device, dtype=np.int64)[:, None, None]
    disk_dse = np.maximum(streamed_dse - host_d11, 0) / model.planning.host.disk_read_bytes_per_second
    seconds_dse = np.empty_like(disk_dse)
    for device, profile in enumerate(model.profiles):
        compute_se = _interval_seconds(model.layer_seconds(device, 1))
        compute_se = compute_se + last_column(model.num_layers) * model.head_seconds(device)
        seconds_dse[device] = np.maximum(compute_se, disk_dse[device])
        if profile.host_to_device_bytes_per_second is not None:
            copies_se = streamed_dse[device] / profile.host_to_device_bytes_per_second
            np.maximum(seconds_dse[device], copies_se, out=seconds_dse[device])
    return seconds_dse, disk_dse


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
