"""From checkpoint tensors to parameters of the model class: transformers' own conversion rules, run piece by piece.

transformers loads a checkpoint by renaming every tensor and collecting those that a converter wants (the experts of a
layer, say) until the whole model is in memory. Here the same rules only say which tensors each parameter is made of;
the tensors are read and converted when that parameter is written, and fused experts one expert at a time.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from teengined.core.errors import SourceError

__all__ = ["Derivation", "ReadTensor", "derive"]

ReadTensor = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """How one or several parameters follow from checkpoint tensors."""

    first_target: str
    targets: tuple[str, ...]
    transform: WeightRenaming | WeightConverter
    sources: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Source pattern -> checkpoint names, in the order in which they are merged."""

    @property
    def expert_wise(self) -> bool:
        """Say whether `run` can make one expert at a time: tensors are stacked first, later steps keep that axis."""
        operations = getattr(self.transform, "operations", None)
        if not operations or not isinstance(operations[0], MergeModulelist) or operations[0].dim != 0:
            return False
        return all(
            (isinstance(step, Concatenate) and step.dim > 0)
            or (isinstance(step, Transpose) and min(step.dim0, step.dim1) > 0 and not step.check_dims)
            for step in operations[1:]
        )

    @property
    def keeps_size(self) -> bool:
        """Say whether the parameter has as many elements as its tensors together: renamed, or stacked and joined."""
        return len(self.targets) == 1 and (isinstance(self.transform, WeightRenaming) or self.expert_wise)

    @property
    def num_merged(self) -> int:
        """How many tensors of each pattern are merged: the number of experts where `expert_wise`."""
        return min((len(names) for names in self.sources.values()), default=0)

    def run(self, model: PreTrainedModel, read: ReadTensor, expert: int | None = None) -> Mapping[str, torch.Tensor]:
        """Read the tensors and return the parameters made of them; with `expert`, that expert's slices only.

        Raises:
            SourceError: the tensors do not fit together.
        """
        transform = deepcopy(self.transform)
        for pattern, names in self.sources.items():
            for name in names if expert is None else [names[expert]]:
                transform.add_tensor(self.first_target, name, pattern, _deferred(read, name))  # type: ignore[arg-type]
        try:
            made = transform.convert(self.first_target, model=model, config=model.config)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            some = next(iter(self.sources.values()))[0]
            raise SourceError(f"tensor {some}: does not fit into {self.first_target}: {error}") from error
        tensors = {name: _single(value) for name, value in made.items()}
        return tensors if expert is None else {name: tensor[0] for name, tensor in tensors.items()}


def derive(model: PreTrainedModel, names: tuple[str, ...]) -> tuple[dict[str, Derivation], tuple[str, ...]]:
    """Return the derivation of every parameter that the checkpoint's `names` lead to, and the names that lead nowhere.

    Source: `convert_and_load_state_dict_in_model` of transformers/core_model_loading.py, whose order of renaming,
    converting and collecting this follows.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, Derivation] = {}
    unused: list[str] = []
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=known)
        if target not in known:
            unused.append(name)
        elif pattern is None:
            transform = WeightRenaming(name, target)
            found.setdefault(target, Derivation(first_target=target, targets=(target,), transform=transform))
            found[target].sources.setdefault(transform.source_patterns[0], []).append(name)
        else:
            _collect(found, by_pattern[pattern], target, pattern, name)
    return {target: one for derivation in found.values() for target, one in _by_target(derivation)}, tuple(unused)


def _collect(found: dict[str, Derivation], converter: WeightConverter, target: str, pattern: str, name: str) -> None:
    if target not in found:
        first = converter.target_patterns[0]
        targets = tuple(target.replace(first, other) for other in converter.target_patterns)
        found[target] = Derivation(first_target=target, targets=targets, transform=converter)
    found[target].sources.setdefault(pattern, []).append(name)


def _single(value: object) -> torch.Tensor:
    """Undo the lists of one that renaming rules return."""
    tensor = value[0] if isinstance(value, list) else value
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _by_target(derivation: Derivation) -> list[tuple[str, Derivation]]:
    return [(target, derivation) for target in derivation.targets]


def _deferred(read: ReadTensor, name: str) -> Callable[[], torch.Tensor]:
    return lambda: read(name)
