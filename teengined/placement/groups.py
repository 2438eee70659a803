"""Units that are bound together: a layer with its experts, the head with what it shares."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from teengined.core.errors import PackageError
from teengined.core.model import ModelManifest, UnitKind, UnitSpec

__all__ = ["Group", "ModelGroups", "group_units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A layer or the head. Its dense units have one tier between them; its routed experts share the stage's caches.

    Parameters are counted by precision, because the cost follows it.
    """

    dense: tuple[UnitSpec, ...]
    experts: tuple[UnitSpec, ...]
    dense_bytes: int
    expert_bytes: int
    dense_parameters: Mapping[str, int]
    expert_parameters: Mapping[str, int]
    """Of all experts; a token computes only some of them."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all units."""
        return self.dense_bytes + self.expert_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGroups:
    """A model as the planner moves it."""

    embedding: UnitSpec | None
    layers: tuple[Group, ...]
    head: Group
    """Includes the embedding unit where the head is tied to it."""
    tied: bool


def group_units(manifest: ModelManifest) -> ModelGroups:
    """Return the groups of a manifest.

    Raises:
        PackageError: a layer has no unit.
    """
    by_layer: list[list[UnitSpec]] = [[] for _ in range(manifest.num_layers)]
    embedding: UnitSpec | None = None
    head: list[UnitSpec] = []
    for unit in manifest.units:
        if unit.kind is UnitKind.EMBEDDING:
            embedding = unit
        elif unit.kind is UnitKind.HEAD:
            head.append(unit)
        elif unit.layer is not None and 0 <= unit.layer < manifest.num_layers:
            by_layer[unit.layer].append(unit)
    for layer, units in enumerate(by_layer):
        if not units:
            raise PackageError(f"package {manifest.name} has no unit for layer {layer}", hint="convert it again")
    tied = embedding is not None and _is_tied(manifest, embedding)
    if tied and embedding is not None:
        head.append(embedding)
    layers = tuple(_group(sorted(units, key=_dense_first)) for units in by_layer)
    return ModelGroups(embedding=embedding, layers=layers, head=_group(head), tied=tied)


def _is_tied(manifest: ModelManifest, embedding: UnitSpec) -> bool:
    shared = set(manifest.tied_parameters.values())
    return any(tensor.parameter in shared for tensor in embedding.tensors)


def _dense_first(unit: UnitSpec) -> int:
    return -1 if unit.expert is None else unit.expert


def _group(units: Iterable[UnitSpec]) -> Group:
    members = tuple(units)
    dense = tuple(unit for unit in members if unit.kind is not UnitKind.EXPERT)
    experts = tuple(unit for unit in members if unit.kind is UnitKind.EXPERT)
    return Group(
        dense=dense,
        experts=experts,
        dense_bytes=sum(unit.size_bytes for unit in dense),
        expert_bytes=sum(unit.size_bytes for unit in experts),
        dense_parameters=_count(dense),
        expert_parameters=_count(experts),
    )


def _count(units: Iterable[UnitSpec]) -> Mapping[str, int]:
    parameters: Counter[str] = Counter()
    for unit in units:
        parameters.update(unit.parameters_by_precision)
    return dict(parameters)
