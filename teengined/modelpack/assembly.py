"""Reads parameters from a checkpoint and writes them as unit files, one tensor at a time."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch

from teengined.core.errors import SourceError
from teengined.core.model import ALIGNMENT_BYTES, TENSOR_ALIGNMENT_BYTES, UnitKind, UnitSpec
from teengined.modelpack.derivation import Derivation, ReadTensor
from teengined.modelpack.encoding import ParameterEncoder
from teengined.modelpack.layout import unit_id
from teengined.modelpack.outline import ModelOutline, ParameterOutline, Role
from teengined.modelpack.unitfile import UnitFileWriter, header_room_bytes

__all__ = ["TensorProvider", "UnitFile", "estimate_bytes", "header_room", "plan_files", "write_units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFile:
    """One file of the package: the embedding, the head, or one layer with its experts."""

    name: str
    kind: UnitKind
    layer: int | None
    parameters: tuple[ParameterOutline, ...]

    @property
    def dense(self) -> tuple[ParameterOutline, ...]:
        """Parameters outside the experts."""
        return tuple(parameter for parameter in self.parameters if not parameter.num_experts)

    @property
    def routed(self) -> tuple[ParameterOutline, ...]:
        """Parameters of fused experts, in order of registration: gate and up before down."""
        return tuple(parameter for parameter in self.parameters if parameter.num_experts)

    @property
    def num_experts(self) -> int:
        """Experts of this layer."""
        return max((parameter.num_experts for parameter in self.parameters), default=0)


def plan_files(outline: ModelOutline) -> tuple[UnitFile, ...]:
    """Return the files of the package in order of execution."""
    layers = (
        UnitFile(name=f"layer-{index:05d}.safetensors", kind=UnitKind.LAYER, layer=index, parameters=parameters)
        for index, parameters in enumerate(outline.layers)
    )
    return (
        UnitFile(name="embedding.safetensors", kind=UnitKind.EMBEDDING, layer=None, parameters=outline.embedding),
        *layers,
        UnitFile(name="head.safetensors", kind=UnitKind.HEAD, layer=None, parameters=outline.head),
    )


def estimate_bytes(file: UnitFile, encoder: ParameterEncoder) -> int:
    """Return an upper bound of the file's size: contents, alignment and header."""
    contents = sum(encoder.total_bytes(one) + 4 * TENSOR_ALIGNMENT_BYTES * _copies(one) for one in file.parameters)
    return contents + (1 + file.num_experts) * ALIGNMENT_BYTES + header_room(file)


@dataclass(slots=True, kw_only=True)
class TensorProvider:
    """Makes parameters on demand and keeps what came along with them until the file is done."""

    outline: ModelOutline
    derivations: Mapping[str, Derivation]
    read: ReadTensor
    _pending: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor], init=False)

    def take(self, name: str) -> torch.Tensor:
        """Return a whole parameter and forget it."""
        self._make(name)
        return self._pending.pop(name)

    def take_expert(self, parameter: ParameterOutline, expert: int) -> torch.Tensor:
        """Return one expert's slice. Where the checkpoint keeps experts apart, only that expert is read."""
        derivation = self.derivations[parameter.name]
        if derivation.expert_wise:
            if derivation.num_merged != parameter.num_experts:
                raise SourceError(
                    f"tensor {parameter.name}: the checkpoint has {derivation.num_merged} experts, "
                    f"its config.json says {parameter.num_experts}"
                )
            return derivation.run(self.outline.model, self.read, expert)[parameter.name]
        self._make(parameter.name)
        whole = self._pending[parameter.name]
        if whole.shape[:1] != (parameter.num_experts,):
            raise SourceError(
                f"tensor {parameter.name}: shape {tuple(whole.shape)} is not one of {parameter.num_experts} experts"
            )
        return whole[expert]

    def forget(self) -> None:
        """Free what is kept: the next file needs none of it."""
        self._pending.clear()

    def _make(self, name: str) -> None:
        if name in self._pending:
            return
        self._pending.update(self.derivations[name].run(self.outline.model, self.read))
        if name not in self._pending:
            raise SourceError(f"tensor {name}: the checkpoint's tensors do not lead to it")


def write_units(
    writer: UnitFileWriter,
    file: UnitFile,
    provider: TensorProvider,
    encoder: ParameterEncoder,
    *,
    advance: Callable[[int], None],
) -> tuple[UnitSpec, ...]:
    """Write the file's units: the dense one, then each expert with its gate, up and down together.

    `advance` gets the stored bytes of each parameter as it is done.
    """
    for parameter in file.dense:
        for part in encoder.parts(parameter, provider.take(parameter.name)):
            writer.add(part)
        advance(encoder.stored_bytes(parameter))
    dense_id = file.kind.value if file.layer is None else unit_id(file.layer)
    dense = writer.end_unit(dense_id, file.kind, layer=file.layer)
    units = [_described(dense, file.dense, encoder)]
    for expert in range(file.num_experts):
        for parameter in file.routed:
            for part in encoder.parts(parameter, provider.take_expert(parameter, expert), expert):
                writer.add(part, expert)
            advance(encoder.stored_bytes(parameter, expert))
        assert file.layer is not None
        unit = writer.end_unit(unit_id(file.layer, expert), UnitKind.EXPERT, layer=file.layer, expert=expert)
        units.append(_described(unit, file.routed, encoder))
    provider.forget()
    return tuple(units)


def _described(unit: UnitSpec, parameters: Sequence[ParameterOutline], encoder: ParameterEncoder) -> UnitSpec:
    """Fill in what the writer does not know. The unit's precision is that of most of its elements."""
    sizes: Counter[str] = Counter()
    for parameter in parameters:
        if parameter.role is not Role.PLAIN:
            sizes[encoder.strategy_of(parameter, unit.expert).name] += prod(parameter.shape)
    precision = max(sizes, key=lambda name: sizes[name]) if sizes else encoder.base.name
    tensors = (replace(one, precision="") if one.precision == precision else one for one in unit.tensors)
    num_parameters = sum(prod(parameter.shape) for parameter in parameters)
    return replace(unit, precision=precision, num_parameters=num_parameters, tensors=tuple(tensors))


def _copies(parameter: ParameterOutline) -> int:
    return max(parameter.num_experts, 1)


def header_room(file: UnitFile) -> int:
    """Return the room that the file's header needs."""
    dense = [parameter.name for parameter in file.dense]
    routed = [f"{parameter.name}[00000]" for parameter in file.routed]
    return header_room_bytes([*dense, *routed * file.num_experts])
