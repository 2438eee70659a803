"""Rows of an embedding, looked up without holding the embedding: a few kilobytes a token instead of the whole unit."""

from collections.abc import Iterator, Mapping

import torch

from teengined.core.errors import InternalError
from teengined.core.model import TensorSpec, UnitSpec
from teengined.weights.arena import UnitArena
from teengined.weights.digests import DigestCheck, check_pieces
from teengined.weights.package_files import PackageFile
from teengined.weights.unit_views import dtype_of, unit_views

__all__ = ["RowsOnDevice", "RowsOnDisk", "coalesce"]

_PIECE_BYTES = 4 * 1024 * 1024


class RowsOnDevice:
    """The embedding unit is resident."""

    def __init__(self, arena: UnitArena, unit: UnitSpec) -> None:
        """Look into the arena that holds the unit."""
        buffer, offset = arena.locate(unit.id)
        self._tensors = unit_views(buffer, offset, unit)

    def rows(self, parameter: str, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return rows `ids` of each part of the parameter, as new tensors on the device."""
        return {part: tensor[ids.to(tensor.device)] for part, tensor in self._tensors[parameter].items()}

    @property
    def read_bytes(self) -> int:
        """Nothing is read."""
        return 0

    @property
    def num_reads(self) -> int:
        """Nothing is read."""
        return 0


class RowsOnDisk:
    """The embedding unit rests below the device: its rows are read one by one, through the page cache."""

    def __init__(self, file: PackageFile, unit: UnitSpec, device: torch.device) -> None:
        """Keep the file, which others own."""
        self._file = file
        self._unit = unit
        self._device = device
        self.read_bytes = 0
        self.num_reads = 0

    def verify(self, digests: DigestCheck) -> None:
        """Compare the whole unit in pieces, unless that is done elsewhere or not wanted.

        Raises:
            PackageCorrupt: it differs.
        """
        if digests.is_due(self._unit):
            check_pieces(self._unit, self._pieces())

    def rows(self, parameter: str, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return rows `ids` of each part of the parameter, as new tensors on the device.

        Memory: the distinct rows once, and the result.
        """
        self._file.check_unchanged(f"unit {self._unit.id}")
        distinct, places = torch.unique(ids.cpu(), sorted=True, return_inverse=True)
        runs = coalesce(distinct.tolist())
        parts = [spec for spec in self._unit.tensors if spec.parameter == parameter]
        self._announce(parts, runs)
        return {spec.part: self._read_part(spec, runs)[places].to(self._device) for spec in parts}

    def _announce(self, parts: list[TensorSpec], runs: list[tuple[int, int]]) -> None:
        for spec in parts:
            for first, count in runs:
                offset, size = self._range(spec, first, count)
                self._file.announce(offset, size)

    def _read_part(self, spec: TensorSpec, runs: list[tuple[int, int]]) -> torch.Tensor:
        num_rows = sum(count for _, count in runs)
        rows = torch.empty(num_rows * _row_bytes(spec), dtype=torch.uint8)
        memory = rows.numpy().data
        done = 0
        for first, count in runs:
            offset, size = self._range(spec, first, count)
            self._file.read_cached(offset, memory[done : done + size], f"unit {self._unit.id}")
            done += size
        self.read_bytes += done
        self.num_reads += len(runs)
        return rows.view(dtype_of(spec)).view(num_rows, *spec.shape[1:])

    def _range(self, spec: TensorSpec, first: int, count: int) -> tuple[int, int]:
        """Return offset in the file and size of `count` rows; ids are checked before bytes are touched."""
        if first < 0 or first + count > spec.shape[0]:
            raise InternalError(f"rows {first} to {first + count - 1} of {spec.parameter}, which has {spec.shape[0]}")
        row_bytes = _row_bytes(spec)
        return self._unit.offset_bytes + spec.offset_bytes + first * row_bytes, count * row_bytes

    def _pieces(self) -> Iterator[memoryview]:
        piece = memoryview(bytearray(_PIECE_BYTES))
        for start in range(0, self._unit.size_bytes, _PIECE_BYTES):
            target = piece[: min(_PIECE_BYTES, self._unit.size_bytes - start)]
            self._file.read_cached(self._unit.offset_bytes + start, target, f"unit {self._unit.id}")
            yield target


def coalesce(sorted_ids: list[int]) -> list[tuple[int, int]]:
    """Return (first, count) of each run of consecutive ids, so that neighbours are one read. Pure."""
    runs: list[tuple[int, int]] = []
    for row in sorted_ids:
        if runs and row == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs


def _row_bytes(spec: TensorSpec) -> int:
    return spec.size_bytes // spec.shape[0]
