"""Writes one safetensors file of a package: units on page boundaries, tensors on cache lines, no holes, digests.

    0        8                    data start (page)                        page                    page
    | length | JSON header, spaces | tensor | __pad | tensor ... | __pad    | next unit ...         |
                                   `------------- one unit, one read ------´

The header's room is reserved before the first tensor is known and filled in at the end, so that tensors pass through
one at a time. Takes bytes, knows no torch.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from teengined.core.errors import InternalError
from teengined.core.model import ALIGNMENT_BYTES, TENSOR_ALIGNMENT_BYTES, TensorSpec, UnitKind, UnitSpec
from teengined.modelpack.layout import PADDING_PREFIX, UNITS_DIRECTORY, align_up, file_key, tensor_bytes
from teengined.modelpack.verify import BytesLike, new_digest

__all__ = ["PartBytes", "UnitFileWriter", "header_room_bytes"]

# A header entry is the key, dtype, shape and two offsets; 160 bytes hold all but the key with room to spare.
_ENTRY_BYTES = 160
# Strategies store a matrix in at most this many parts; each may be followed by padding.
_MAX_PARTS = 4


def header_room_bytes(parameters: Sequence[str]) -> int:
    """Return room for the header of a file with these parameters, once for each expert that has them. Whole pages."""
    entries = sum(_MAX_PARTS * (2 * _ENTRY_BYTES + len(name.encode())) for name in parameters)
    return align_up(8 + 1024 + entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBytes:
    """One part of a parameter, ready to be written. `content` is its dense bytes in row-major order."""

    parameter: str
    part: str
    dtype: str
    shape: tuple[int, ...]
    content: BytesLike
    precision: str = ""
    """Strategy of a matrix; empty for what goes through none."""
    parameter_shape: tuple[int, ...] = ()
    """As in `TensorSpec`."""


class UnitFileWriter:
    """Writes units one after the other. Use as a context manager; `close` seals the header and syncs."""

    def __init__(self, directory: Path, file_name: str, header_room: int) -> None:
        """Create `units/<file_name>` under `directory`, with room for a header (see `header_room_bytes`)."""
        self._file_name = f"{UNITS_DIRECTORY}/{file_name}"
        self._fd = os.open(directory / self._file_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._header_room = header_room
        self._position = header_room
        self._entries: dict[str, Mapping[str, object]] = {}
        self._num_pads = 0
        self._units: list[UnitSpec] = []
        self._tensors: list[TensorSpec] = []
        self._digest = new_digest()
        self._unit_start = header_room
        os.lseek(self._fd, header_room, os.SEEK_SET)

    def add(self, part: PartBytes, expert: int | None = None) -> None:
        """Append one part to the open unit."""
        size = tensor_bytes(part.dtype, part.shape)
        self._pad_to(TENSOR_ALIGNMENT_BYTES)
        offset = self._position - self._unit_start
        self._append(file_key(part.parameter, part.part, expert), part.dtype, part.shape, memoryview(part.content))
        if self._position - self._unit_start != offset + size:
            raise InternalError(f"{part.parameter}:{part.part}: its bytes do not agree with {part.dtype} {part.shape}")
        self._tensors.append(
            TensorSpec(
                parameter=part.parameter,
                part=part.part,
                dtype=part.dtype,
                shape=part.shape,
                offset_bytes=offset,
                size_bytes=size,
                precision=part.precision,
                parameter_shape=part.parameter_shape,
            )
        )

    def end_unit(
        self, unit_id: str, kind: UnitKind, *, layer: int | None = None, expert: int | None = None
    ) -> UnitSpec:
        """Close the open unit on a page boundary. Its precision and number of parameters are the caller's to fill."""
        if self._position == self._unit_start:  # a layer of experts only still has a unit, a page of padding
            self._append_padding(ALIGNMENT_BYTES)
        self._pad_to(ALIGNMENT_BYTES)
        unit = UnitSpec(
            id=unit_id,
            kind=kind,
            layer=layer,
            expert=expert,
            precision="",
            file=self._file_name,
            offset_bytes=self._unit_start,
            size_bytes=self._position - self._unit_start,
            num_parameters=0,
            digest=f"blake2b:{self._digest.hexdigest()}",
            tensors=tuple(self._tensors),
        )
        self._unit_start, self._tensors, self._digest = self._position, [], new_digest()
        self._units.append(unit)
        return replace(unit)

    def close(self) -> None:
        """Write the header and sync the file. The file is a complete safetensors file afterwards."""
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._entries}, separators=(",", ":")).encode()
        room = self._header_room - 8
        if len(header) > room:
            raise InternalError(f"{self._file_name}: header of {len(header)} bytes exceeds its room of {room}")
        os.pwrite(self._fd, room.to_bytes(8, "little") + header.ljust(room), 0)
        os.fsync(self._fd)
        self.abandon()

    def abandon(self) -> None:
        """Close the file as it is. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "UnitFileWriter":
        """Return the writer."""
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Seal the file, or leave it unsealed after an error."""
        try:
            if error_type is None:
                self.close()
        finally:
            self.abandon()

    def _pad_to(self, alignment_bytes: int) -> None:
        gap = align_up(self._position, alignment_bytes) - self._position
        if gap:
            self._append_padding(gap)

    def _append_padding(self, size_bytes: int) -> None:
        name = f"{PADDING_PREFIX}{self._num_pads}"
        self._num_pads += 1
        self._append(name, "U8", (size_bytes,), memoryview(bytes(size_bytes)))

    def _append(self, key: str, dtype: str, shape: tuple[int, ...], content: memoryview) -> None:
        if key in self._entries:
            raise InternalError(f"{self._file_name}: {key} written twice")
        begin = self._position - self._header_room
        self._write_all(content)
        self._digest.update(content)
        end = self._position - self._header_room
        self._entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}

    def _write_all(self, content: memoryview) -> None:
        flat = content.cast("B") if content.nbytes else memoryview(b"")
        while flat:
            written = os.write(self._fd, flat)
            self._position += written
            flat = flat[written:]
