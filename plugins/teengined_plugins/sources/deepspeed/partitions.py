"""Where the parameters lie that ZeRO spread over its ranks. Pure: descriptions in, pieces out.

Stages 1 and 2: each group of parameters is one vector, parameter after parameter in the order of `param_shapes`, cut
into one part a rank. Stage 3: each parameter is cut into equal parts, the last padded, and each rank has its parts of
all parameters in a row. Frozen parameters have no optimizer state, and lie beside the model's. Source of the layouts:
DeepSpeed's runtime/zero/stage_1_and_2.py and stage3.py, and its own reading of them in utils/zero_to_fp32.py.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

from teengined.core.dtypes import DTYPE_BYTES
from teengined.core.errors import SourceError
from teengined_plugins.sources.pickled.pieces import Piece, PiecedTensor, pieces_of
from teengined_plugins.sources.pickled.reading import OpenedFile
from teengined_plugins.sources.pickled.values import TensorRange

__all__ = ["MODEL_VALUES", "OPTIMIZER_VALUES", "parameter_shapes", "partitioned_tensors", "whole_tensor"]

_STATE = "optimizer_state_dict"
MODEL_VALUES = (
    ("module",),
    ("param_shapes",),
    ("buffer_names",),
    ("shared_params",),
    ("frozen_param_shapes",),
    ("frozen_param_fragments",),
    ("ds_autoep_layers",),
)
OPTIMIZER_VALUES = (
    (_STATE, "zero_stage"),
    (_STATE, "partition_count"),
    (_STATE, "single_partition_of_fp32_groups"),
    (_STATE, "fp32_flat_groups"),
    (_STATE, "param_alignment_paddings"),
    (_STATE, "ds_zero_partition_groups"),
)
_MAX_STAGE = 3

Sizes = tuple[int, ...]


def partitioned_tensors(
    model: Sequence[OpenedFile], optimizer: Sequence[OpenedFile], *, partitioned: bool
) -> dict[str, PiecedTensor]:
    """Return every parameter and buffer of a checkpoint of stages 0 to 3 by name.

    Raises:
        SourceError: what the files say does not fit together.
    """
    _refuse_expert_groups(model, optimizer)
    stage = _stage(optimizer, partitioned=partitioned)
    found: dict[str, PiecedTensor] = {}
    if optimizer:
        _check_world(optimizer)
        spread = _by_parameter if stage == _MAX_STAGE else _by_group
        found.update({tensor.name: tensor for tensor in spread(model, optimizer)})
    for tensor in _frozen(model, partitioned=partitioned):
        found.setdefault(tensor.name, tensor)
    # Before the model's own state: there, a name that shares a parameter has it in bf16.
    for alias, owner in _shared(model[0]).items():
        if owner in found:
            found.setdefault(alias, found[owner])
    for tensor in _module(model[0], buffers_only=partitioned):
        found.setdefault(tensor.name, tensor)
    return found


def parameter_shapes(file: OpenedFile) -> list[dict[str, Sizes]]:
    """Return the shapes of the file's trained parameters, group by group.

    Raises:
        SourceError: they are missing or malformed.
    """
    groups = file.values.get("param_shapes")
    groups = [groups] if isinstance(groups, dict) else groups
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise SourceError(f"{file.path.name} does not say which parameters the weights are of (param_shapes)")
    return [{name: _sizes(file, name, shape) for name, shape in group.items()} for group in groups]


def whole_tensor(file: OpenedFile, name: str, tensor: TensorRange, shape: Sizes | None = None) -> PiecedTensor:
    """Return a tensor that lies in one file, as of `shape` where that has as many values."""
    fits = shape is not None and prod(shape) == tensor.num_elements
    return PiecedTensor(
        name=name,
        dtype=tensor.dtype,
        shape=cast("Sizes", shape) if fits else tensor.shape,
        pieces=(_piece(file, tensor),),
        in_order=tensor.in_order,
    )


def _refuse_expert_groups(model: Sequence[OpenedFile], optimizer: Sequence[OpenedFile]) -> None:
    for file in (*model, *optimizer):
        if file.values.get("ds_autoep_layers") or file.values.get(f"{_STATE}/ds_zero_partition_groups"):
            raise SourceError(
                f"{file.path.name} is a part of a model whose experts were spread in training, which is not read",
                hint="convert it with DeepSpeed's ds_to_universal.py, and name what that wrote",
            )


def _stage(optimizer: Sequence[OpenedFile], *, partitioned: bool) -> int:
    stages = {file.values.get(f"{_STATE}/zero_stage", 1) for file in optimizer}
    if not optimizer:
        return 0
    if len(stages) != 1 or not stages <= set(range(_MAX_STAGE + 1)):
        raise SourceError(f"{optimizer[0].path.name} and the others of its kind are of ZeRO stages {sorted(stages)}")
    stage: int = stages.pop()
    if (stage == _MAX_STAGE) != partitioned:
        raise SourceError(f"{optimizer[0].path.name} is of ZeRO stage {stage}, and the *_model_states.pt are not")
    return stage


def _check_world(optimizer: Sequence[OpenedFile]) -> None:
    said = optimizer[0].values.get(f"{_STATE}/partition_count", len(optimizer))
    count = max(said, default=0) if isinstance(said, list) else said
    if count != len(optimizer):
        raise SourceError(
            f"{optimizer[0].path.name} is one of {count} parts; {len(optimizer)} are here",
            hint="copy the files of every process of the training run into the directory",
        )


def _by_group(model: Sequence[OpenedFile], optimizer: Sequence[OpenedFile]) -> list[PiecedTensor]:
    """Stages 1 and 2."""
    shapes = parameter_shapes(model[0])
    parts = [_flat_parts(file, f"{_STATE}/single_partition_of_fp32_groups") for file in optimizer]
    paddings = optimizer[0].values.get(f"{_STATE}/param_alignment_paddings") or [[0] * len(group) for group in shapes]
    if any(len(groups) != len(shapes) for groups in (*parts, paddings)):
        raise SourceError(f"{optimizer[0].path.name} and {model[0].path.name} do not have as many groups of parameters")
    found: list[PiecedTensor] = []
    for number, group in enumerate(shapes):
        row = [rank[number] for rank in parts]
        padding = paddings[number]
        if len(padding) != len(group):
            raise SourceError(f"{optimizer[0].path.name}: paddings of group {number} are not one a parameter")
        found += _cut_group(group, padding, [tensor for _, tensor in row], [piece for piece, _ in row])
    return found


def _cut_group(
    group: Mapping[str, Sizes], padding: Sequence[int], row: Sequence[TensorRange], pieces: Sequence[Piece]
) -> list[PiecedTensor]:
    dtype = _one_dtype(row, pieces)
    found: list[PiecedTensor] = []
    position = 0
    for (name, shape), after in zip(group.items(), padding, strict=True):
        size = prod(shape) * DTYPE_BYTES[dtype]
        cut = pieces_of(pieces, position * DTYPE_BYTES[dtype], size)
        found.append(PiecedTensor(name=name, dtype=dtype, shape=shape, pieces=cut))
        position += prod(shape) + after
    held, align = sum(tensor.num_elements for tensor in row), 2 * len(row)
    # Vectors are padded to a multiple of two values a rank, and the padding is cut off or not.
    if held < position - (padding[-1] if padding else 0) or -(-held // align) > -(-position // align):
        raise SourceError(f"{pieces[0].path.name} and its like hold {held} values for parameters of {position}")
    return found


def _by_parameter(model: Sequence[OpenedFile], optimizer: Sequence[OpenedFile]) -> list[PiecedTensor]:
    """Stage 3."""
    shapes = {name: shape for group in parameter_shapes(model[0]) for name, shape in group.items()}
    ranks = [_flat_parts(file, f"{_STATE}/fp32_flat_groups") for file in optimizer]
    rows = [[piece for piece, _ in rank] for rank in ranks]
    dtype = _one_dtype([tensor for rank in ranks for _, tensor in rank], [piece for row in rows for piece in row])
    found: list[PiecedTensor] = []
    position = 0
    for name, shape in shapes.items():
        found.append(_gather(name, dtype, shape, [(row, position) for row in rows]))
        position += -(-prod(shape) // len(rows))
    for file, row in zip(optimizer, rows, strict=True):
        held = sum(piece.size_bytes for piece in row) // DTYPE_BYTES[dtype]
        if held != position:
            raise SourceError(f"{file.path.name} holds {held} values for a rank's part of {position}")
    return found


def _gather(name: str, dtype: str, shape: Sizes, rows: Sequence[tuple[Sequence[Piece], int]]) -> PiecedTensor:
    """Join the parts of one parameter: `rows` are each rank's pieces, and how many values precede it there."""
    item, left = DTYPE_BYTES[dtype], prod(shape)
    part = -(-left // len(rows))
    pieces: list[Piece] = []
    for row, position in rows:
        count = min(part, left)
        pieces += pieces_of(row, position * item, count * item)
        left -= count
    return PiecedTensor(name=name, dtype=dtype, shape=shape, pieces=tuple(pieces))


def _frozen(model: Sequence[OpenedFile], *, partitioned: bool) -> list[PiecedTensor]:
    found: list[PiecedTensor] = []
    for name, sizes in (model[0].values.get("frozen_param_shapes") or {}).items():
        shape = _sizes(model[0], name, sizes)
        row = [_fragment(file, name) for file in (model if partitioned else model[:1])]
        dtype = _one_dtype([tensor for _, tensor in row], [piece for piece, _ in row])
        tensor = _gather(name, dtype, shape, [([piece], 0) for piece, _ in row])
        if sum(piece.size_bytes for piece in tensor.pieces) != tensor.size_bytes:
            raise SourceError(f"{model[0].path.name} and its like do not hold all values of the frozen {name:.120}")
        found.append(tensor)
    return found


def _fragment(file: OpenedFile, name: str) -> tuple[Piece, TensorRange]:
    fragment = (file.values.get("frozen_param_fragments") or {}).get(name)
    if not isinstance(fragment, TensorRange) or not fragment.in_order:
        raise SourceError(f"{file.path.name} lacks its part of the frozen parameter {name:.120}")
    return _piece(file, fragment), fragment


def _shared(file: OpenedFile) -> dict[str, str]:
    """Return names of parameters that are another's as well, by what the file says and by where they lie."""
    said = file.values.get("shared_params")
    found: dict[str, str] = {a: o for a, o in said.items() if isinstance(o, str)} if isinstance(said, dict) else {}
    first: dict[TensorRange, str] = {}
    for name, tensor in (file.values.get("module") or {}).items():
        owner = first.setdefault(tensor, name) if isinstance(tensor, TensorRange) and tensor.num_elements else name
        if owner != name:
            found.setdefault(name, owner)
            found.setdefault(owner, name)
    return found


def _module(file: OpenedFile, *, buffers_only: bool) -> list[PiecedTensor]:
    """Return what the model's own state holds: under stage 3, parameters are placeholders there."""
    module = file.values.get("module")
    wanted = set(file.values.get("buffer_names") or ()) if buffers_only else None
    items = module.items() if isinstance(module, dict) else ()
    return [
        whole_tensor(file, name, tensor)
        for name, tensor in items
        if isinstance(tensor, TensorRange) and (wanted is None or name in wanted)
    ]


def _flat_parts(file: OpenedFile, key: str) -> list[tuple[Piece, TensorRange]]:
    parts = file.values.get(key)
    parts = [parts] if isinstance(parts, TensorRange) else parts
    if not isinstance(parts, list) or not all(isinstance(part, TensorRange) and part.in_order for part in parts):
        raise SourceError(f"{file.path.name} holds no weights of its rank ({key.rpartition('/')[2]})")
    return [(_piece(file, part), part) for part in cast("list[TensorRange]", parts)]


def _one_dtype(tensors: Sequence[TensorRange], pieces: Sequence[Piece]) -> str:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1:
        raise SourceError(
            f"{pieces[0].path.name} and its like hold one parameter in several dtypes" if pieces else "no parts"
        )
    return dtypes.pop()


def _piece(file: OpenedFile, tensor: TensorRange) -> Piece:
    return Piece(path=file.path, offset_bytes=tensor.offset_bytes, size_bytes=tensor.size_bytes)


def _sizes(file: OpenedFile, name: str, value: Any) -> Sizes:
    if not isinstance(value, list) or any(type(size) is not int or size < 0 for size in value):
        raise SourceError(f"{file.path.name}: {name:.120} has no shape")
    return tuple(value)
