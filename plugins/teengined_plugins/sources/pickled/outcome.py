"""What the reading process is asked and what it tells, apart from either end. JSON in frames, every one bounded.

A question is one JSON object up to the end of standard input. For each file there is one frame on standard output: four
bytes with the length, then a JSON object with either `problem` or `values`, by the path that was asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from teengined.core.dtypes import DTYPE_BYTES
from teengined_plugins.sources.pickled.archive import ArchiveEntry
from teengined_plugins.sources.pickled.values import RefusedFile, TensorInStorage, TensorRange

__all__ = ["ReadingBounds", "Wanted", "told", "understood"]

Wanted = Sequence[Sequence[str]]
"""Paths of keys from the root of a file's value: `("module",)`, `("optimizer_state_dict", "zero_stage")`."""

# Lists of mappings of shapes are the deepest that is asked for.
_MAX_DEPTH = 8
# Of values in one reply: some ten a parameter.
_MAX_VALUES = 4_000_000
_LARGEST = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingBounds:
    """What reading one file may take. A checkpoint of a thousand parameters needs some milliseconds and megabytes."""

    cpu_seconds: float = 60.0
    """Of processor time: about a second for each ten thousand parameters, on a slow core."""
    wall_seconds: float = 120.0
    """Of waiting, even for a processor or a disk."""
    memory_bytes: int = 1 << 30
    """Beyond what the process has before it begins: a hundred thousand parameters take some 300 MB."""
    max_reply_bytes: int = 64 << 20
    """Of a frame: some 150 bytes a tensor."""


def told(root: object, wanted: Wanted, entries: Mapping[str, ArchiveEntry]) -> dict[str, Any]:
    """Return the wanted values of `root` as JSON can say them; what is not there is left out.

    Raises:
        RefusedFile: a value is not plain, too deep, too many, or a tensor's storage is not in the archive.
    """
    teller = _Teller(entries)
    values: dict[str, Any] = {}
    for path in wanted:
        found = _follow(root, path)
        if found is not None:
            values["/".join(path)] = teller.tell(found, 0)
    return values


def understood(value: Any, file_bytes: int) -> Any:
    """Return a told value again: tensors as `TensorRange`, mappings as dicts.

    Raises:
        RefusedFile: it is none, or a tensor does not lie in a file of `file_bytes`.
    """
    if isinstance(value, list):
        return [understood(item, file_bytes) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    table = cast("dict[str, Any]", value)
    if "map" in table:
        return {name: understood(item, file_bytes) for name, item in table["map"].items()}
    dtype, shape, offset, in_order = table["tensor"]
    try:
        tensor = TensorRange(dtype=dtype, shape=tuple(shape), offset_bytes=offset, in_order=in_order)
    except (TypeError, ValueError) as error:
        raise RefusedFile(f"holds what is no tensor: {error}") from error
    if tensor.in_order and tensor.offset_bytes + tensor.size_bytes > file_bytes:
        raise RefusedFile("holds a tensor that ends beyond the file")
    return tensor


def _follow(root: object, path: Sequence[str]) -> object:
    for key in path:
        if not isinstance(root, dict):
            return None
        root = cast("dict[object, object]", root).get(key)
    return root


class _Teller:
    """Turns values into JSON's, and counts them: one that is used many times is told many times."""

    def __init__(self, entries: Mapping[str, ArchiveEntry]) -> None:
        self._left = _MAX_VALUES
        self._storages = {name.rpartition("/data/")[2]: entry for name, entry in entries.items() if "/data/" in name}

    def tell(self, value: object, depth: int) -> Any:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise RefusedFile("describes weights that are nested too deeply" if self._left >= 0 else "holds too much")
        if value is None or type(value) in (bool, float):
            return value
        if isinstance(value, int):
            return value if -_LARGEST <= value < _LARGEST else None
        if isinstance(value, str):
            return value.encode("utf-8", errors="replace").decode()
        if isinstance(value, TensorInStorage):
            return {"tensor": self._range(value)}
        if isinstance(value, (list, tuple)):
            return [self.tell(item, depth + 1) for item in cast("Sequence[object]", value)]
        if isinstance(value, dict):
            items = cast("dict[object, object]", value).items()
            return {"map": {key: self.tell(item, depth + 1) for key, item in items if isinstance(key, str)}}
        return None

    def _range(self, tensor: TensorInStorage) -> list[Any]:
        storage = tensor.storage
        entry = self._storages.get(storage.key)
        if entry is None:
            raise RefusedFile(f"is truncated: storage {storage.key!r:.40} is missing")
        needed = storage.num_elements * (DTYPE_BYTES[storage.dtype] if storage.dtype else 1)
        if entry.size_bytes < needed:
            raise RefusedFile(
                f"is damaged: storage {storage.key!r:.40} should have {needed} bytes and has {entry.size_bytes}"
            )
        offset = entry.offset_bytes + tensor.offset_elements * DTYPE_BYTES[tensor.dtype]
        return [tensor.dtype, list(tensor.shape), offset, tensor.in_order]
