"""Turns an assignment of layers into stages: a tier for every unit, the memory of every part, the cost of each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from teengined.core.plan import ExpertCache, Stage, StageCost, StageExperts, Tier, UnitPlacement
from teengined.interfaces.policy import Assignment
from teengined.placement.costs import CostModel
from teengined.placement.experts import (
    cut_slots,
    expert_counts,
    share_per_token,
    slot_classes,
    slot_sizes,
    touched_share,
)
from teengined.placement.groups import Group
from teengined.placement.residency import Residency, choose_resident, ring_bytes, spread
from teengined.placement.table import sizes_of_stage, streaming_limit

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
    """Of the dense part of each group."""
    cached_bytes: int
    """Of routed experts that lie on the device, as room for a cache; all of them where they fit."""
    embedding_tier: Tier | None
    """None where the stage has no embedding, or the embedding is part of its head group."""
    host_bytes: int = 0
    """Of host memory, for a cache of experts behind the device's."""

    def bytes_in(self, *tiers: Tier) -> int:
        """Return the bytes of dense groups in any of `tiers`."""
        return sum(group.dense_bytes for group, tier in zip(self.groups, self.tiers, strict=True) if tier in tiers)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(group.expert_bytes for group in self.groups)

    @property
    def caches_experts(self) -> bool:
        """Whether experts do not all fit."""
        return self.cached_bytes < self.expert_bytes


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
        growth = _chunk_growth(model, stage, chunk)
        seconds += max(compute, growth * stage.cost.host_seconds, growth * stage.cost.disk_seconds) + hop
    return seconds * num_chunks


def _chunk_growth(model: CostModel, stage: Stage, num_tokens: int) -> float:
    """Return how many times more bytes a chunk streams than a token: more of the experts are asked for."""
    if stage.experts is None or not stage.streamed_bytes:
        return 1.0
    missed = (1 - stage.experts.hit_rate) * stage.experts.num_bytes
    share = share_per_token(model.planning.manifest)
    more = missed * (touched_share(share, num_tokens) - share)
    return 1.0 + more / stage.streamed_bytes


def _draft(model: CostModel, index: int, assignment: Assignment, next_device: int | None) -> _Draft | None:
    """Choose what is resident; None where the stage does not fit."""
    has_head = assignment.layer_end == model.num_layers
    groups = model.groups.layers[assignment.layer_start : assignment.layer_end]
    groups += (model.groups.head,) if has_head else ()
    available = _available_bytes(model, assignment)
    choice = _choose(model, groups, available)
    if int(choice.resident_bytes) < 0:
        return None
    draft = _Draft(
        index=index,
        assignment=assignment,
        next_device=next_device,
        groups=groups,
        tiers=_tiers_of_groups(model, groups, choice),
        cached_bytes=int(choice.cached_bytes),
        embedding_tier=None,
    )
    return replace(draft, embedding_tier=_embedding_tier(model, draft, available))


def _available_bytes(model: CostModel, assignment: Assignment) -> int:
    """Return what the stage's device has for weights and ring."""
    device, has_head = assignment.device, assignment.layer_end == model.num_layers
    kv_bytes = sum(model.kv_bytes_of_layers(device)[assignment.layer_start : assignment.layer_end])
    return model.budget_bytes(device) - kv_bytes - model.workspace_bytes(device, has_head=has_head)


def _choose(model: CostModel, groups: Sequence[Group], available: int) -> Residency:
    stage = sizes_of_stage(model, groups)
    limit = streaming_limit(model, stage.total_bytes)
    return choose_resident(stage, np.asarray(available), ring_slots=model.planning.ring_slots, limit=limit)


def _tiers_of_groups(model: CostModel, groups: Sequence[Group], choice: Residency) -> tuple[Tier, ...]:
    """Return `DEVICE` or `DISK` for each group.

    Of groups of one size, those are streamed first that the host tier holds for others; the rest are spread evenly.
    """
    sizes = sorted({group.dense_bytes for group in groups if group.dense_bytes}, reverse=True)
    tiers = [Tier.DEVICE] * len(groups)
    for size, kept in zip(sizes, choice.counts, strict=True):
        members = [position for position, group in enumerate(groups) if group.dense_bytes == size]
        held = [position for position in members if model.held_bytes(groups[position])]
        others = [position for position in members if position not in held]
        num_streamed = len(members) - int(kept)
        from_held = min(num_streamed, len(held))
        for position in (*_evenly(held, from_held), *_evenly(others, num_streamed - from_held)):
            tiers[position] = Tier.DISK
    return tuple(tiers)


def _evenly(positions: Sequence[int], number: int) -> list[int]:
    chosen = spread(len(positions), number)
    return [position for position, is_chosen in zip(positions, chosen, strict=True) if is_chosen]


def _embedding_tier(model: CostModel, draft: _Draft, available: int) -> Tier | None:
    """Return where the embedding rests: resident only in room that no other group could use, since rows cost little."""
    embedding, assignment = model.groups.embedding, draft.assignment
    with_head = model.groups.tied and assignment.layer_end == model.num_layers
    if embedding is None or assignment.layer_start > 0 or with_head:
        return None
    resident = draft.bytes_in(Tier.DEVICE) + _expert_memory_bytes(model, draft) + embedding.size_bytes
    fraction = model.planning.resident_fraction
    total = draft.bytes_in(Tier.DEVICE, Tier.DISK) + draft.expert_bytes + embedding.size_bytes
    fits = resident + _ring_bytes(model, draft) <= available
    return Tier.DEVICE if fits and (fraction is None or resident <= fraction * total) else Tier.DISK


def _fill_host_tier(model: CostModel, drafts: Sequence[_Draft]) -> list[_Draft]:
    """Move streamed groups from disk to host memory while there is room, first where the disk makes a stage slowest."""
    filled, room = list(drafts), model.host_tier_bytes()
    while True:
        open_stages = [
            draft
            for draft in filled
            if model.uses_host_tier(draft.assignment.device) and _next_for_host(model, draft, room) is not None
        ]
        if not open_stages:
            return _fill_host_caches(model, filled, room)
        neediest = max(open_stages, key=lambda draft: (_disk_excess(model, draft), -draft.index))
        position = _next_for_host(model, neediest, room)
        assert position is not None
        tiers = list(neediest.tiers)
        tiers[position] = Tier.HOST
        room -= _new_bytes(model, neediest.groups[position])
        filled[neediest.index] = replace(neediest, tiers=tuple(tiers))


def _new_bytes(model: CostModel, group: Group) -> int:
    """Return what a group takes of the host tier: what others hold there is shared."""
    return group.dense_bytes - model.held_bytes(group)


def _next_for_host(model: CostModel, draft: _Draft, room: int) -> int | None:
    """Return the largest group on disk that fits into `room`."""
    fitting = [
        position
        for position, (group, tier) in enumerate(zip(draft.groups, draft.tiers, strict=True))
        if tier is Tier.DISK and _new_bytes(model, group) <= room
    ]
    return max(fitting, key=lambda position: (draft.groups[position].dense_bytes, -position), default=None)


def _fill_host_caches(model: CostModel, drafts: Sequence[_Draft], room: int) -> list[_Draft]:
    """Give what dense groups left of host memory to caches of experts, as far as these are larger than the device's."""
    filled = list(drafts)
    for draft in sorted(drafts, key=lambda draft: _disk_excess(model, draft), reverse=True):
        if not draft.caches_experts or not model.uses_host_tier(draft.assignment.device):
            continue
        taken = min(room, draft.expert_bytes)
        if taken > draft.cached_bytes:
            filled[draft.index] = replace(draft, host_bytes=taken)
            room -= taken
    return filled


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
    share = share_per_token(model.planning.manifest)
    copied = draft.bytes_in(Tier.HOST, Tier.DISK) + share * (draft.expert_bytes - draft.cached_bytes)
    host = 0.0 if copies_per_second is None else copied / copies_per_second
    behind = draft.expert_bytes - max(draft.cached_bytes, draft.host_bytes)
    read = draft.bytes_in(Tier.DISK) + share * behind
    return compute, host, read / model.planning.host.disk_read_bytes_per_second


def _finish(model: CostModel, draft: _Draft) -> Stage:
    assignment, device = draft.assignment, draft.assignment.device
    has_head = assignment.layer_end == model.num_layers
    embedding = model.groups.embedding
    resident = draft.bytes_in(Tier.DEVICE)
    experts = _stage_experts(model, draft)
    if experts is None:
        resident += draft.expert_bytes
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
        streamed_bytes=draft.bytes_in(Tier.HOST, Tier.DISK) + (experts.missed_bytes_per_token if experts else 0),
        experts=experts,
    )


def _stage_experts(model: CostModel, draft: _Draft) -> StageExperts | None:
    if not draft.caches_experts:
        return None
    total = draft.expert_bytes
    return StageExperts(
        caches=_caches(model, draft),
        num_bytes=total,
        bytes_per_token=round(share_per_token(model.planning.manifest) * total),
        hit_rate=draft.cached_bytes / total,
    )


def _caches(model: CostModel, draft: _Draft) -> tuple[ExpertCache, ...]:
    classes = slot_classes(expert_counts(draft.groups), slot_sizes(model.groups.layers))
    caches = cut_slots(classes, draft.cached_bytes)
    if not draft.host_bytes:
        return caches
    behind = cut_slots(classes, draft.host_bytes)
    return tuple(replace(cache, num_host_slots=b.num_slots) for cache, b in zip(caches, behind, strict=True))


def _expert_memory_bytes(model: CostModel, draft: _Draft) -> int:
    """Return what experts take of the device: all of them, or whole slots."""
    if not draft.caches_experts:
        return draft.expert_bytes
    return sum(cache.num_slots * cache.slot_bytes for cache in _caches(model, draft))


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
    streamed = [g.dense_bytes for g, tier in zip(draft.groups, draft.tiers, strict=True) if tier is not Tier.DEVICE]
    return ring_bytes(streamed, model.planning.ring_slots)


def _unit_placements(model: CostModel, draft: _Draft) -> tuple[UnitPlacement, ...]:
    """Return each unit of the stage once, in order of execution."""
    tiers: dict[str, Tier] = {}
    of_experts = Tier.DISK if draft.caches_experts else Tier.DEVICE
    for group, tier in zip(draft.groups, draft.tiers, strict=True):
        tiers.update(dict.fromkeys((unit.id for unit in group.dense), tier))
        tiers.update(dict.fromkeys((unit.id for unit in group.experts), of_experts))
    embedding = model.groups.embedding
    if embedding is not None and draft.assignment.layer_start == 0:
        # Tied to a head on this stage, it has the head's tier and is listed where it is used first.
        first = draft.embedding_tier or tiers[embedding.id]
        tiers = {embedding.id: first, **{unit_id: tier for unit_id, tier in tiers.items() if unit_id != embedding.id}}
    return tuple(UnitPlacement(unit_id=unit_id, tier=tier) for unit_id, tier in tiers.items())
