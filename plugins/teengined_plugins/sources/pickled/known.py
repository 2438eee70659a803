"""The names that a checkpoint's pickle may mention, and what each becomes. Any other name is refused, by name.

Nothing is imported or called under these names: an entry here is a function of ours that makes a plain value, or says
that the object is of no interest.
"""

from collections.abc import Callable, Mapping
from typing import cast

from teengined.core.dtypes import DTYPE_BYTES
from teengined_plugins.sources.pickled.values import (
    MAX_DIMENSIONS,
    Inert,
    RefusedFile,
    Storage,
    TensorInStorage,
)

__all__ = ["DTYPES", "STORAGES", "Named", "build", "named", "storage_of"]

_MAX_SIZE = 1 << 62

STORAGES: Mapping[str, str] = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.UntypedStorage": "",
    "torch.storage.UntypedStorage": "",
}
DTYPES: Mapping[str, str] = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}
# State of training beside the weights. Nothing of it is wanted, so that nothing is made of it.
_INERT = frozenset(
    {
        "__builtin__.dict",
        "__builtin__.int",
        "__builtin__.list",
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.dict",
        "builtins.int",
        "builtins.list",
        "deepspeed.checkpoint.universal_checkpoint.SubparamShape",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.lr_schedules.WarmupCosineLR",
        "deepspeed.runtime.lr_schedules.WarmupDecayLR",
        "deepspeed.runtime.lr_schedules.WarmupLR",
        "deepspeed.utils.tensor_fragment.fragment_address",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "torch.Generator",
        "torch.device",
        "torch.serialization._get_layout",
    }
)


class Named:
    """A name of the table, as it stands on the machine's stack."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """Keep the dotted name."""
        self.name = name


def named(module: str, name: str) -> Named | str:
    """Return what a mention of `module.name` becomes: a dtype's name, or the name to be built.

    Raises:
        RefusedFile: it is not in the table.
    """
    full = f"{module}.{name}"
    if full in DTYPES:
        return DTYPES[full]
    if full in _BUILDERS or full in STORAGES or full in _INERT:
        return Named(full)
    shown = f"{full if full.isprintable() else ascii(full):.160}"
    raise RefusedFile(f"names {shown}, which no weights need; it was not run, and the file is refused")


def build(one: Named, arguments: tuple[object, ...]) -> object:
    """Return the value that `one`, called with `arguments`, stands for.

    Raises:
        RefusedFile: the arguments are not those of such a call.
    """
    if one.name in _INERT:
        return Inert(name=one.name)
    builder = _BUILDERS.get(one.name)
    if builder is None:
        raise RefusedFile(f"calls {one.name}, which is no call of a checkpoint")
    return builder(arguments)


def storage_of(reference: object) -> Storage:
    """Return the storage that a persistent id names: `("storage", class, key, place, count)`.

    Raises:
        RefusedFile: it is of another form.
    """
    match reference:
        case ("storage", Named(name=kind), str(key), _, int(count)) if kind in STORAGES and 0 <= count < _MAX_SIZE:
            return Storage(key=key, dtype=STORAGES[kind], num_elements=count)
        case _:
            raise RefusedFile("refers to content in a way that torch does not")


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        if len(items) <= MAX_DIMENSIONS and all(type(item) is int and 0 <= item < _MAX_SIZE for item in items):
            return cast("tuple[int, ...]", items)
    raise RefusedFile("describes a tensor whose shape or strides are not a few sizes from zero upwards")


def _tensor(arguments: tuple[object, ...]) -> TensorInStorage:
    match arguments:
        case (Storage() as storage, int(offset), sizes, strides, *rest):
            dtype = storage.dtype or next((one for one in rest if isinstance(one, str) and one in DTYPE_BYTES), "")
            return _checked_tensor(storage, dtype, offset, (_sizes(sizes), _sizes(strides)))
        case _:
            raise RefusedFile("describes a tensor in a way that torch does not")


def _checked_tensor(
    storage: Storage, dtype: str, offset: int, layout: tuple[tuple[int, ...], tuple[int, ...]]
) -> TensorInStorage:
    shape, strides = layout
    if dtype not in DTYPE_BYTES:
        raise RefusedFile(f"holds a tensor of an unknown dtype in storage {storage.key!r:.40}")
    held = storage.num_elements if storage.dtype else storage.num_elements // DTYPE_BYTES[dtype]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    fits = 0 in shape or (offset >= 0 and offset + last < held)
    if len(shape) != len(strides) or offset < 0 or not fits:
        raise RefusedFile(
            f"describes a tensor of shape {list(shape)} at {offset} that does not lie in its storage of {held} elements"
        )
    return TensorInStorage(storage=storage, dtype=dtype, shape=shape, strides=strides, offset_elements=offset)


def _parameter(arguments: tuple[object, ...]) -> object:
    if arguments and isinstance(arguments[0], TensorInStorage):
        return arguments[0]
    raise RefusedFile("describes a parameter that is no tensor")


def _size(arguments: tuple[object, ...]) -> object:
    return _sizes(arguments[0]) if len(arguments) == 1 else _sizes(None)


def _ordered(arguments: tuple[object, ...]) -> object:
    made: dict[object, object] = {}
    if not arguments:
        return made
    pairs = cast("list[object]", arguments[0]) if isinstance(arguments[0], list) else []
    for pair in pairs:
        match pair:
            case (str(key), value) | [str(key), value]:
                made[key] = value
            case _:
                raise RefusedFile("describes an ordered mapping in a way that torch does not")
    return made


def _items(arguments: tuple[object, ...]) -> object:
    """Keep a set as a list: nobody asks for membership, and its items need not be hashed."""
    return list(cast("list[object]", arguments[0])) if arguments and isinstance(arguments[0], list) else []


def _number(arguments: tuple[object, ...]) -> object:
    if len(arguments) == 1 and type(arguments[0]) is int:
        return arguments[0]
    raise RefusedFile("describes a ZeRO stage that is no number")


_BUILDERS: Mapping[str, Callable[[tuple[object, ...]], object]] = {
    "__builtin__.set": _items,
    "builtins.set": _items,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda _: {},
    "deepspeed.runtime.zero.config.ZeroStageEnum": _number,
    "torch.Size": _size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
}
