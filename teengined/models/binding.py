"""Which module takes which stored parameter, worked out once, so that binding a streamed unit is a few assignments."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from teengined.core.errors import PackageError
from teengined.core.model import ModelManifest, UnitSpec
from teengined.interfaces.precision import PrecisionStrategy
from teengined.models.experts import BoundExpert, ExpertTable
from teengined.models.linear import StrategyLinear

__all__ = ["Binder", "FetchUnits", "UnitTensors"]

UnitTensors = Mapping[str, Mapping[str, torch.Tensor]]
FetchUnits = Callable[[Sequence[int], bool], Generator[tuple[int, UnitTensors]]]
"""As `FetchExperts`, with tensors as they are stored."""
_Target = Callable[[Mapping[str, torch.Tensor]], None]


@dataclass(slots=True)
class _BoundUnit:
    targets: list[tuple[str, _Target]]
    last: UnitTensors | None = None


class Binder:
    """Puts the tensors of units into the modules of one model. Views are used as they are; vectors may be cast.

    A module that has a bound view must not run after the view's buffer was released: the layer that acquires a group
    binds it, runs and releases it.
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: ModelManifest,
        precisions: Mapping[str, PrecisionStrategy],
        compute_dtype: torch.dtype,
    ) -> None:
        """Resolve nothing yet: a unit's targets are found at its first binding."""
        self._model = model
        self._units = {unit.id: unit for unit in manifest.units}
        self._tied = {stored: tied for tied, stored in manifest.tied_parameters.items()}
        self._precisions = precisions
        self._compute_dtype = compute_dtype
        self._bound: dict[str, _BoundUnit] = {}

    def bind(self, unit_id: str, tensors: UnitTensors) -> None:
        """Make `tensors` the weights of the unit's modules. Nothing happens if they are so already.

        Raises:
            PackageError: the unit names a parameter that the model does not have, or one of another kind.
        """
        bound = self._bound.get(unit_id)
        if bound is None:
            bound = self._bound[unit_id] = _BoundUnit(self._targets(self._units[unit_id]))
        if bound.last is tensors:
            return
        for parameter, assign in bound.targets:
            assign(tensors[parameter])
        bound.last = tensors

    def fetch_experts(self, units: Mapping[int, UnitSpec], fetch: FetchUnits) -> None:
        """Have the experts of a layer, `units` by index, come through `fetch` when the layer asks for them.

        Raises:
            PackageError: the units belong to no module that routes to experts.
        """
        strategies = {expert: self._precisions[unit.precision] for expert, unit in units.items()}
        table = self._expert_table(next(iter(units.values())))

        def bound(experts: Sequence[int], in_order: bool) -> Generator[tuple[int, BoundExpert]]:
            fetched = fetch(experts, in_order)
            with contextlib.closing(fetched):
                for expert, tensors in fetched:
                    short = {name.rpartition(".")[2]: parts for name, parts in tensors.items()}
                    yield expert, BoundExpert(strategies[expert], short)

        table.fetch_with(bound)

    def _expert_table(self, unit: UnitSpec) -> ExpertTable:
        path = unit.tensors[0].parameter.rpartition(".")[0]
        try:
            table = self._model.get_submodule(path).expert_table
        except AttributeError as error:
            raise PackageError(f"unit {unit.id} has no place in {type(self._model).__name__}") from error
        assert isinstance(table, ExpertTable)
        return table

    def _targets(self, unit: UnitSpec) -> list[tuple[str, _Target]]:
        if unit.expert is not None:
            return self._expert_targets(unit, self._precisions[unit.precision], unit.expert)
        precisions = {tensor.parameter: tensor.precision or unit.precision for tensor in unit.tensors}
        pairs = [
            (name, self._target(self._tied.get(name, name), self._precisions[precision]))
            for name, precision in precisions.items()
        ]
        return [(name, target) for name, target in pairs if target is not None]

    def _target(self, parameter: str, strategy: PrecisionStrategy) -> _Target | None:
        path, _, attribute = parameter.rpartition(".")
        try:
            module = self._model.get_submodule(path)
        except AttributeError as error:
            raise PackageError(f"parameter {parameter} has no place in {type(self._model).__name__}") from error
        if isinstance(module, nn.Embedding):
            return None  # looked up by rows, never bound whole
        if isinstance(module, StrategyLinear):
            return _linear_target(module, attribute, strategy, self._cast)
        table = module._parameters if attribute in module._parameters else module._buffers  # noqa: SLF001
        if attribute not in table:
            raise PackageError(f"parameter {parameter} has no place in {type(module).__name__}")

        def assign(parts: Mapping[str, torch.Tensor]) -> None:
            table[attribute] = self._cast(parts["data"])  # type: ignore[assignment]

        return assign

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a vector in the compute dtype, except what the model keeps in fp32 beside a narrower dtype."""
        if tensor.dtype == torch.float32 or not tensor.is_floating_point():
            return tensor
        return tensor.to(self._compute_dtype)

    def _expert_targets(self, unit: UnitSpec, strategy: PrecisionStrategy, expert: int) -> list[tuple[str, _Target]]:
        """Return one target that takes the whole expert; it is keyed by the first parameter and fed by `bind`."""
        collected: dict[str, Mapping[str, torch.Tensor]] = {}
        names = list(dict.fromkeys(tensor.parameter for tensor in unit.tensors))
        table = self._expert_table(unit)

        def collector(name: str) -> _Target:
            short = name.rpartition(".")[2]

            def assign(parts: Mapping[str, torch.Tensor]) -> None:
                collected[short] = parts
                if len(collected) == len(names):
                    table.bind(expert, strategy, collected)

            return assign

        return [(name, collector(name)) for name in names]


def _linear_target(
    module: StrategyLinear, attribute: str, strategy: PrecisionStrategy, cast: Callable[[torch.Tensor], torch.Tensor]
) -> _Target:
    def assign_weight(parts: Mapping[str, torch.Tensor]) -> None:
        module.parts = parts

    def assign_bias(parts: Mapping[str, torch.Tensor]) -> None:
        module.bias_O = cast(parts["data"])

    if attribute != "weight":
        return assign_bias
    module.strategy = strategy
    return assign_weight
