"""Which units a synthetic package has, and which of them share bytes. Pure.

Units of one shape may hold the same bytes: the manifest then points several of them at one range of one file. How many
different contents there are follows from the bytes that may be distinct; slot i of a shape takes content i mod n, so
that the experts of one layer differ from each other as long as there are contents enough.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from teengined.core.errors import RequestError
from teengined.core.model import UnitKind
from teengined.core.quantities import format_bytes
from teengined.modelpack.assembly import UnitFile
from teengined.modelpack.layout import align_up, unit_id
from teengined.modelpack.outline import ParameterOutline

__all__ = ["ContentFile", "Slot", "SyntheticPlan", "plan_synthetic"]

# Expert contents are many; a file of about this size is soon written again after a crash, and there are few of them.
_FILE_BYTES = 1 << 30
_MAX_UNITS_OF_FILE = 512

Signature = tuple[object, ...]
Content = tuple[Signature, int]
StoredBytes = Callable[[UnitKind, ParameterOutline], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A unit of the package, before it has bytes."""

    id: str
    kind: UnitKind
    layer: int | None
    expert: int | None
    parameters: tuple[ParameterOutline, ...]
    stored_bytes: int
    """In whole pages."""

    @property
    def signature(self) -> Signature:
        """What two units must have in common to hold the same bytes: everything but the number of the layer."""
        shapes = tuple((self.short(one.name), one.role, one.dtype, one.shape) for one in self.parameters)
        return (self.kind, *shapes)

    @property
    def num_parameters(self) -> int:
        """Logical parameters."""
        return sum(prod(parameter.shape) for parameter in self.parameters)

    def short(self, name: str) -> str:
        """Return a parameter's name without the number of the layer."""
        return name if self.layer is None else name.replace(f".{self.layer}.", ".", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentFile:
    """A file of distinct contents: each is written as the unit of its first slot, and with its number."""

    name: str
    contents: tuple[tuple[Slot, Content], ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all contents, in whole pages."""
        return sum(slot.stored_bytes for slot, _ in self.contents)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticPlan:
    """Every slot in order of execution with its content, and the files that hold the contents."""

    slots: tuple[tuple[Slot, Content], ...]
    files: tuple[ContentFile, ...]

    @property
    def distinct_bytes(self) -> int:
        """Bytes of all contents, in whole pages."""
        return sum(file.stored_bytes for file in self.files)


def plan_synthetic(files: Sequence[UnitFile], stored_bytes: StoredBytes, distinct_bytes: int | None) -> SyntheticPlan:
    """Return the plan; at most about `distinct_bytes` differ from each other, or all where it is None.

    Args:
        files: As a conversion would write them.
        stored_bytes: Of one parameter, or of one expert's slice of it, in a unit of that kind.
        distinct_bytes: Dense units take their part first, the routed experts share the rest.

    Raises:
        RequestError: one unit of each shape needs more than that; says how much.
    """
    slots = [slot for file in files for slot in _slots(file, stored_bytes)]
    by_signature: dict[Signature, list[Slot]] = {}
    for slot in slots:
        by_signature.setdefault(slot.signature, []).append(slot)
    counts = _num_contents(by_signature, distinct_bytes)
    seen: dict[Signature, int] = dict.fromkeys(by_signature, 0)
    assigned: list[tuple[Slot, Content]] = []
    owned: list[tuple[Slot, Content]] = []
    for slot in slots:
        signature = slot.signature
        index = seen[signature]
        seen[signature] += 1
        content = (signature, index % counts[signature])
        assigned.append((slot, content))
        if index < counts[signature]:
            owned.append((slot, content))
    return SyntheticPlan(slots=tuple(assigned), files=tuple(_files(owned)))


def _slots(file: UnitFile, stored_bytes: StoredBytes) -> Iterator[Slot]:
    dense, routed = file.dense, file.routed
    yield Slot(
        id=file.kind.value if file.layer is None else unit_id(file.layer),
        kind=file.kind,
        layer=file.layer,
        expert=None,
        parameters=dense,
        stored_bytes=align_up(sum(stored_bytes(file.kind, parameter) for parameter in dense)),
    )
    size = align_up(sum(stored_bytes(UnitKind.EXPERT, parameter) for parameter in routed))
    for expert in range(file.num_experts):
        assert file.layer is not None, "experts belong to layers"
        yield Slot(
            id=unit_id(file.layer, expert),
            kind=UnitKind.EXPERT,
            layer=file.layer,
            expert=expert,
            parameters=routed,
            stored_bytes=size,
        )


def _num_contents(by_signature: Mapping[Signature, Sequence[Slot]], distinct_bytes: int | None) -> dict[Signature, int]:
    if distinct_bytes is None:
        return {signature: len(slots) for signature, slots in by_signature.items()}
    least = sum(slots[0].stored_bytes for slots in by_signature.values())
    if least > distinct_bytes:
        raise RequestError(
            f"--distinct {format_bytes(distinct_bytes)} is too little: one unit of each shape takes "
            f"{format_bytes(least)}",
            hint=f"ask for at least --distinct {-(-least // 10**6)}MB",
        )
    left = distinct_bytes - least
    counts = dict.fromkeys(by_signature, 1)
    for routed in (False, True):
        group = {key: slots for key, slots in by_signature.items() if (slots[0].kind is UnitKind.EXPERT) == routed}
        wanted = sum((len(slots) - 1) * slots[0].stored_bytes for slots in group.values())
        share = min(1.0, left / wanted) if wanted else 0.0
        for signature, slots in group.items():
            more = int((len(slots) - 1) * share)
            counts[signature] += more
            left -= more * slots[0].stored_bytes
    return counts


def _files(owned: Sequence[tuple[Slot, Content]]) -> Iterator[ContentFile]:
    dense = [pair for pair in owned if pair[0].kind is not UnitKind.EXPERT]
    for slot, content in dense:
        stem = slot.kind.value if slot.layer is None else f"layer-{slot.layer:05d}"
        yield ContentFile(name=f"{stem}.safetensors", contents=((slot, content),))
    batch: list[tuple[Slot, Content]] = []
    number = 0
    for pair in owned:
        if pair[0].kind is not UnitKind.EXPERT:
            continue
        batch.append(pair)
        if len(batch) == _MAX_UNITS_OF_FILE or sum(slot.stored_bytes for slot, _ in batch) >= _FILE_BYTES:
            yield ContentFile(name=f"experts-{number:05d}.safetensors", contents=tuple(batch))
            batch, number = [], number + 1
    if batch:
        yield ContentFile(name=f"experts-{number:05d}.safetensors", contents=tuple(batch))
