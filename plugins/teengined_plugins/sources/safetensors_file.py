"""One safetensors file of a checkpoint that nobody vouched for: its header checked, its tensors read by range."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from teengined.core.dtypes import DTYPE_BYTES
from teengined.core.errors import SourceError
from teengined_plugins.sources.dtypes import torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["FileTensor", "SafetensorsFile"]

# The safetensors library's own limit.
MAX_HEADER_BYTES = 100 * 10**6
_MAX_DIMENSIONS = 8
_READ_AGAIN = "download the file again; its size and checksum are on the model's page"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """Where one tensor lies. `offset_bytes` is from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


class SafetensorsFile:
    """An open file with a checked header. Reads go through its descriptor, so that the file cannot be swapped."""

    def __init__(self, path: Path) -> None:
        """Open and check it.

        Raises:
            SourceError: it is no complete, consistent safetensors file; names the file and the tensor.
        """
        self._name = path.name
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path.name} cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(self._fd)
            self.identity = (path.name, status.st_size, status.st_mtime_ns, status.st_ino)
            """Name, size, time of change, inode: another content has another identity."""
            self.tensors = self._checked_tensors(status.st_size)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor, its own memory, in the dtype of the file."""
        import torch

        entry = self.tensors[name]
        content = torch.empty(entry.size_bytes, dtype=torch.uint8)
        self._read_into(content.numpy().data, entry.offset_bytes, name)
        return content.view(torch_dtype(entry.dtype)).reshape(entry.shape)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_into(self, buffer: memoryview, offset_bytes: int, name: str) -> None:
        position = 0
        while position < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[position:]], offset_bytes + position)
            except OSError as error:
                raise SourceError(f"{self._name}: tensor {name} cannot be read: {error.strerror}") from error
            if count == 0:
                raise SourceError(f"{self._name}: tensor {name}: the file became shorter while it was read")
            position += count

    def _checked_tensors(self, file_bytes: int) -> dict[str, FileTensor]:
        table, data_start = self._read_header(file_bytes)
        tensors = {
            name: _entry(self._name, name, value, data_start) for name, value in table.items() if name != "__metadata__"
        }
        _check_coverage(self._name, tensors, data_start, file_bytes)
        return tensors

    def _read_header(self, file_bytes: int) -> tuple[Mapping[str, Any], int]:
        length_field = os.pread(self._fd, 8, 0)
        header_bytes = int.from_bytes(length_field, "little")
        if len(length_field) < 8 or header_bytes < 2:
            raise SourceError(f"{self._name} is no safetensors file: it is too short", hint=_READ_AGAIN)
        if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise SourceError(
                f"{self._name}: its header claims {header_bytes} bytes, the file has {file_bytes}", hint=_READ_AGAIN
            )
        try:
            text = os.pread(self._fd, header_bytes, 8).decode()
            table: object = json.loads(text, object_pairs_hook=self._refuse_doubles)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self._name}: its header is not JSON: {error}", hint=_READ_AGAIN) from error
        if not isinstance(table, dict):
            raise SourceError(f"{self._name}: its header is not a JSON object", hint=_READ_AGAIN)
        return cast("dict[str, Any]", table), 8 + header_bytes

    def _refuse_doubles(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"{self._name}: tensor {double!r:.120} is listed twice")
        return table


def _entry(file: str, name: str, value: object, data_start: int) -> FileTensor:
    where = f"{file}: tensor {name!r:.120}"
    if not isinstance(value, dict):
        raise SourceError(f"{where}: its entry is not a JSON object")
    table = cast("dict[str, object]", value)
    dtype, shape, offsets = table.get("dtype"), _naturals(table.get("shape")), _naturals(table.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise SourceError(f"{where}: dtype {dtype!r:.40} is not known")
    if shape is None or len(shape) > _MAX_DIMENSIONS:
        raise SourceError(f"{where}: shape {table.get('shape')!r:.80} is not a list of at most {_MAX_DIMENSIONS} sizes")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SourceError(f"{where}: data_offsets {table.get('data_offsets')!r:.80} are not a range")
    size, needed = offsets[1] - offsets[0], prod(shape) * DTYPE_BYTES[dtype]
    if size != needed:
        raise SourceError(f"{where}: it has {size} bytes, {dtype} of shape {list(shape)} takes {needed}")
    return FileTensor(dtype=dtype, shape=shape, offset_bytes=data_start + offsets[0], size_bytes=size)


def _naturals(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    if any(type(item) is not int or not 0 <= item < 2**63 for item in items):
        return None
    return tuple(cast("list[int]", items))


def _check_coverage(file: str, tensors: Mapping[str, FileTensor], data_start: int, file_bytes: int) -> None:
    """Hold tensors to lie side by side from the header to the end of the file, as the format demands."""
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset_bytes, item[1].size_bytes)):
        if tensor.offset_bytes + tensor.size_bytes > file_bytes:
            raise SourceError(
                f"{file}: tensor {name!r:.120} ends at byte {tensor.offset_bytes + tensor.size_bytes}, "
                f"the file is truncated at {file_bytes}",
                hint=_READ_AGAIN,
            )
        if tensor.offset_bytes != end:
            problem = "overlaps the tensor before it" if tensor.offset_bytes < end else "leaves a gap before it"
            raise SourceError(f"{file}: tensor {name!r:.120} {problem}", hint=_READ_AGAIN)
        end = tensor.offset_bytes + tensor.size_bytes
    if end != file_bytes:
        raise SourceError(f"{file}: {file_bytes - end} bytes after the last tensor belong to none", hint=_READ_AGAIN)
