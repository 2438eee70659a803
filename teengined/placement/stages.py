"""Turns an assignment of layers into stages: a tier for every unit, the memory of every part, the cost of each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from teengined.core.plan import Stage, StageCost, Tier, UnitPlacement
from teengined.interfaces.policy import Assignment
from teengined.placement.costs import CostModel
from teengined.placement.groups import Group
from teengined.placement.residency import StageSizes, choose_resident, ring_bytes, spread
from teengined.placement.table import streaming_limit

__all__ = ["build_stages", "disk_seconds", "latency_seconds", "period_seconds", "prefill_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A stage whose streamed groups still lie on disk; the host tier is shared out among all drafts."""

    index: int
    assignment: Assignment
    next_device: int | None
    groups: tuple[Group, ...]
    """In order of execution; the head last, where the stage has it."""
    tiers: tuple[Tier, ...]
    embedding_tier: Tier | None
    """None where the stage has no embedding, or the embedding is part of its head group."""

    def bytes_in(self, *tiers: Tier) -> int:
        """Return the bytes of groups in any of `tiers`."""
        return sum(group.size_bytes for group, tier in zip(self.groups, self.tiers, strict=True) if tier in tiers)


def build_stages(model: CostModel, assignments: Sequence[Assignment]) -> tuple[Stage, ...] | None:
    """Return the stages of `assignments`, or None where one of them does not fit its device."""
    drafts: list[_Draft] = []
    for index, assignment in enumerate(assignments):
        follower = assignments[index + 1].device if index + 1 < len(assignments) else None
        draft = _draft(model, index, assignment, follower)
        if draft is None:
            return None
        drafts.append(draft)
    return tuple(_finish(model, draft) for draft in _fill_host_tier(model, drafts))


def latency_seconds(stages: Sequence[Stage]) -> float:
    """Return the time of one token of one stream."""
    return sum(stage.cost.seconds for stage in stages)


def disk_seconds(stages: Sequence[Stage]) -> float:
    """Return the time the host's one disk is busy for one token of every stage."""
    return sum(stage.cost.disk_seconds for stage in stages)


def period_seconds(stages: Sequence[Stage]) -> float:
    """Return the time between tokens of a full pipeline: the slowest stage, hop or shared disk."""
    slowest = max(max(stage.cost.seconds - stage.cost.hop_seconds, stage.cost.hop_seconds) for stage in stages)
    return max(slowest, disk_seconds(stages))


def prefill_seconds(model: CostModel, stages: Sequence[Stage], num_tokens: int) -> float:
    """Return the time to the first token of a prompt: chunks of `max_step_tokens`, one after the other.

    Streamed units pass once for each chunk. Attention over long contexts is not in it, so it is a lower estimate there.
    """
    index_of = {spec.id: index for index, spec in enumerate(model.planning.devices)}
    chunk = min(num_tokens, model.planning.max_step_tokens)
    num_chunks = -(-num_tokens // chunk)
    seconds = 0.0
    for stage, follower in zip(stages, [*stages[1:], None], strict=True):
        device = index_of[stage.device_id]
        compute = sum(model.layer_seconds(device, chunk)[stage.layer_start : stage.layer_end])
        compute += model.head_seconds(device) if stage.has_head else 0.0
        hop = model.hop_seconds(device, index_of[follower.device_id], chunk) if follower else 0.0
        seconds += max(compute, stage.cost.host_seconds, stage.cost.disk_seconds) + hop
    return seconds * num_chunks


def _draft(model: CostModel, index: int, assignment: Assignment, next_device: int | None) -> _Draft | None:
    """Choose what is resident; None where the stage does not fit."""
    has_head = assignment.layer_end == model.num_layers
    groups = model.groups.layers[assignment.layer_start : assignment.layer_end]
    groups += (model.groups.head,) if has_head else ()
    available = _available_bytes(model, assignment)
    tiers = _choose_tiers(model, [group.size_bytes for group in groups], available)
    if tiers is None:
        return None
    draft = _Draft(
        index=index, assignment=assignment, next_device=next_device, groups=groups, tiers=tiers, embedding_tier=None
    )
    return replace(draft, embedding_tier=_embedding_tier(model, draft, available))


def _available_bytes(model: CostModel, assignment: Assignment) -> int:
    """Return what the stage's device has for weights and ring."""
    device, has_head = assignment.device, assignment.layer_end == model.num_layers
    kv_bytes = sum(model.kv_bytes_of_layers(device)[assignment.layer_start : assignment.layer_end])
    return model.budget_bytes(device) - kv_bytes - model.workspace_bytes(device, has_head=has_head)


def _choose_tiers(model: CostModel, group_sizes: Sequence[int], available: int) -> tuple[Tier, ...] | None:
    """Return `DEVICE` or `DISK` for each group; of groups of one size, streamed ones are spread evenly."""
    sizes = tuple(sorted({size for size in group_sizes if size}, reverse=True))
    stage = StageSizes(sizes=sizes, counts=tuple(np.asarray(group_sizes.count(size)) for size in sizes))
    limit = streaming_limit(model, stage.total_bytes)
    choice = choose_resident(stage, np.asarray(available), ring_slots=model.planning.ring_slots, limit=limit)
    if int(choice.resident_bytes) < 0:
        return None
    tiers = [Tier.DEVICE] * len(group_sizes)
    for size, kept in zip(sizes, choice.counts, strict=True):
        members = [position for position, group_size in enumerate(group_sizes) if group_size == size]
        for position, streams in zip(members, spread(len(members), len(members) - int(kept)), strict=True):
            tiers[position] = Tier.DISK if streams else Tier.DEVICE
    return tuple(tiers)


def _embedding_tier(model: CostModel, draft: _Draft, available: int) -> Tier | None:
    """Return where the embedding rests: resident only in room that no other group could use, since rows cost little."""
    embedding, assignment = model.groups.embedding, draft.assignment
    with_head = model.groups.tied and assignment.layer_end == model.num_layers
    if embedding is None or assignment.layer_start > 0 or with_head:
        return None
    resident = draft.bytes_in(Tier.DEVICE) + embedding.size_bytes
    fraction = model.planning.resident_fraction
    total = draft.bytes_in(Tier.DEVICE, Tier.DISK) + embedding.size_bytes
    fits = resident + _ring_bytes(model, draft) <= available
    return Tier.DEVICE if fits and (fraction is None or resident <= fraction * total) else Tier.DISK


def _fill_host_tier(model: CostModel, drafts: Sequence[_Draft]) -> list[_Draft]:
    """Move streamed groups from disk to host memory while there is room, first where the disk makes a stage slowest."""
    filled, room = list(drafts), model.host_tier_bytes()
    while True:
        open_stages = [
            draft
            for draft in filled
            if model.uses_host_tier(draft.assignment.device) and _next_for_host(draft, room) is not None
        ]
        if not open_stages:
            return filled
        neediest = max(open_stages, key=lambda draft: (_disk_excess(model, draft), -draft.index))
        position = _next_for_host(neediest, room)
        assert position is not None
        tiers = list(neediest.tiers)
        tiers[position] = Tier.HOST
        room -= neediest.groups[position].size_bytes
        filled[neediest.index] = replace(neediest, tiers=tuple(tiers))


def _next_for_host(draft: _Draft, room: int) -> int | None:
    """Return the largest group on disk that fits into `room`."""
    fitting = [
        position
        for position, (group, tier) in enumerate(zip(draft.groups, draft.tiers, strict=True))
        if tier is Tier.DISK and group.size_bytes <= room
    ]
    return max(fitting, key=lambda position: (draft.groups[position].size_bytes, -position), default=None)


def _disk_excess(model: CostModel, draft: _Draft) -> tuple[bool, float]:
    """Rank by whether the disk binds the stage, then by how long it does."""
    compute, host, disk = _seconds(model, draft)
    return disk > max(compute, host), disk


def _seconds(model: CostModel, draft: _Draft) -> tuple[float, float, float]:
    """Return compute, host-to-device and disk seconds of one decode step."""
    device = draft.assignment.device
    compute = sum(model.layer_seconds(device, 1)[draft.assignment.layer_start : draft.assignment.layer_end])
    if draft.assignment.layer_end == model.num_layers:
        compute += model.head_seconds(device)
    copies_per_second = model.profiles[device].host_to_device_bytes_per_second
    streamed = draft.bytes_in(Tier.HOST, Tier.DISK)
    host = 0.0 if copies_per_second is None else streamed / copies_per_second
    return compute, host, draft.bytes_in(Tier.DISK) / model.planning.host.disk_read_bytes_per_second


def _finish(model: CostModel, draft: _Draft) -> Stage:
    assignment, device = draft.assignment, draft.assignment.device
    has_head = assignment.layer_end == model.num_layers
    embedding = model.groups.embedding
    resident = draft.bytes_in(Tier.DEVICE)
    if embedding is not None and draft.embedding_tier is Tier.DEVICE:
        resident += embedding.size_bytes
    return Stage(
        index=draft.index,
        device_id=model.planning.devices[device].id,
        layer_start=assignment.layer_start,
        layer_end=assignment.layer_end,
        has_embedding=assignment.layer_start == 0,
        has_head=has_head,
        compute_dtype=model.compute_dtypes[device],
        units=_unit_placements(model, draft),
        resident_bytes=resident,
        ring_bytes=_ring_bytes(model, draft),
        kv_bytes=sum(model.kv_bytes_of_layers(device)[assignment.layer_start : assignment.layer_end]),
        workspace_bytes=model.workspace_bytes(device, has_head=has_head),
        transport="" if draft.next_device is None else model.link(device, draft.next_device).transport,
        cost=_cost(model, draft),
        streamed_bytes=draft.bytes_in(Tier.HOST, Tier.DISK),
    )


def _cost(model: CostModel, draft: _Draft) -> StageCost:
    compute, host, disk = _seconds(model, draft)
    hop = 0.0 if draft.next_device is None else model.hop_seconds(draft.assignment.device, draft.next_device)
    parts = {"compute": compute, "host": host, "disk": disk, "hop": hop}
    return StageCost(
        compute_seconds=compute,
        host_seconds=host,
        disk_seconds=disk,
        hop_seconds=hop,
        seconds=max(compute, host, disk) + hop,
        binding=max(parts, key=lambda name: parts[name]),
    )


def _ring_bytes(model: CostModel, draft: _Draft) -> int:
    streamed = [g.size_bytes for g, tier in zip(draft.groups, draft.tiers, strict=True) if tier is not Tier.DEVICE]
    return ring_bytes(streamed, model.planning.ring_slots)


def _unit_placements(model: CostModel, draft: _Draft) -> tuple[UnitPlacement, ...]:
    """Return each unit of the stage once, in order of execution."""
    tiers = {unit.id: tier for group, tier in zip(draft.groups, draft.tiers, strict=True) for unit in group.units}
    embedding = model.groups.embedding
    if embedding is not None and draft.assignment.layer_start == 0:
        # Tied to a head on this stage, it has the head's tier and is listed where it is used first.
        first = draft.embedding_tier or tiers[embedding.id]
        tiers = {embedding.id: first, **{unit_id: tier for unit_id, tier in tiers.items() if unit_id != embedding.id}}
    return tuple(UnitPlacement(unit_id=unit_id, tier=tier) for unit_id, tier in tiers.items())
