"""Which units are needed together, and in which order: the list that the ring walks through in circles. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from teengined.core.errors import PackageError
from teengined.core.model import ModelManifest, UnitKind, UnitSpec
from teengined.core.plan import Stage, Tier

__all__ = ["UnitGroup", "experts_of", "group_units", "tiers_of_units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGroup:
    """Units that must be on the device at the same time."""

    index: int
    """Position in the order of execution, from 0."""
    unit_ids: tuple[str, ...]
    """Dense unit first."""
    streamed: bool
    """Whether any of the units comes from below the device each time."""


def group_units(manifest: ModelManifest, stage: Stage) -> tuple[UnitGroup, ...]:
    """Return the groups of `stage` in order of execution: one for each layer, and one for the head where it has it.

    Routed experts that come when they are asked for are in no group. The head's group also holds the embedding unit
    where the head shares the embedding's weight. The embedding as such is no group: it is looked up by rows.

    Raises:
        PackageError: the plan was made for another package (a unit of the stage has no place in it).
    """
    layers: dict[int, list[str]] = {layer: [] for layer in range(stage.layer_start, stage.layer_end)}
    for unit in manifest.units:
        if unit.layer in layers and (unit.expert is None or stage.experts is None):
            layers[unit.layer].append(unit.id)
    members = [tuple(unit_ids) for unit_ids in layers.values()]
    if stage.has_head:
        members.append(_head_unit_ids(manifest))
    tiers = tiers_of_units(stage, (unit_id for unit_ids in members for unit_id in unit_ids))
    return tuple(
        UnitGroup(
            index=index,
            unit_ids=unit_ids,
            streamed=any(tiers[unit_id] is not Tier.DEVICE for unit_id in unit_ids),
        )
        for index, unit_ids in enumerate(members)
    )


def experts_of(manifest: ModelManifest, stage: Stage) -> dict[tuple[int, int], UnitSpec]:
    """Return the routed experts of `stage` that come when they are asked for, by (layer, expert)."""
    if stage.experts is None:
        return {}
    return {
        (unit.layer, unit.expert): unit
        for unit in manifest.units
        if unit.layer is not None and unit.expert is not None and stage.layer_start <= unit.layer < stage.layer_end
    }


def tiers_of_units(stage: Stage, unit_ids: Iterable[str]) -> dict[str, Tier]:
    """Return where each of the units rests. Raises PackageError as `group_units`."""
    placed = {placement.unit_id: placement.tier for placement in stage.units}
    tiers: dict[str, Tier] = {}
    for unit_id in unit_ids:
        if unit_id not in placed:
            raise PackageError(
                f"the plan has no place for unit {unit_id}: it was made for another package",
                hint="load the model again",
            )
        tiers[unit_id] = placed[unit_id]
    return tiers


def _head_unit_ids(manifest: ModelManifest) -> tuple[str, ...]:
    shared = set(manifest.tied_parameters.values())
    tied = tuple(
        unit.id
        for unit in manifest.units
        if unit.kind is UnitKind.EMBEDDING and any(tensor.parameter in shared for tensor in unit.tensors)
    )
    return tuple(unit.id for unit in manifest.units if unit.kind is UnitKind.HEAD) + tied
