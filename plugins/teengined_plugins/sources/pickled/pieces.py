"""Tensors that lie in pieces over several files: how ZeRO leaves parameters behind. Read by range, never by pickle."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from teengined.core.dtypes import DTYPE_BYTES
from teengined.core.errors import SourceError
from teengined_plugins.sources.dtypes import torch_dtype
from teengined_plugins.sources.pickled.reading import FileIdentity, identity_of

if TYPE_CHECKING:
    import torch

__all__ = ["Piece", "PiecedTensor", "pieces_of", "read_pieces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of one file."""

    path: Path
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecedTensor:
    """A tensor whose values are its pieces' bytes, one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    in_order: bool = True

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def read_pieces(tensor: PiecedTensor, identities: Mapping[Path, FileIdentity]) -> "torch.Tensor":
    """Return the tensor, its own memory, in the dtype of the files.

    Raises:
        SourceError: a file changed since it was opened, or cannot be read.
    """
    import torch

    if not tensor.in_order:
        raise SourceError(f"tensor {tensor.name}: it is stored as a view whose values do not lie side by side")
    content = torch.empty(tensor.size_bytes, dtype=torch.uint8)
    buffer, position = content.numpy().data, 0
    for piece in tensor.pieces:
        _read_into(buffer[position : position + piece.size_bytes], piece, identities[piece.path], tensor.name)
        position += piece.size_bytes
    assert position == tensor.size_bytes
    return content.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def _read_into(buffer: memoryview, piece: Piece, identity: FileIdentity, name: str) -> None:
    try:
        fd = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{piece.path.name} cannot be opened: {error.strerror}") from error
    try:
        if identity_of(piece.path, fd) != identity:
            raise SourceError(f"{piece.path.name} was changed while the checkpoint was read", hint="convert it again")
        position = 0
        while position < len(buffer):
            count = os.preadv(fd, [buffer[position:]], piece.offset_bytes + position)
            if count == 0:
                raise SourceError(f"{piece.path.name}: tensor {name}: the file became shorter while it was read")
            position += count
    except OSError as error:
        raise SourceError(f"{piece.path.name}: tensor {name} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def pieces_of(parts: Sequence[Piece], start_bytes: int, size_bytes: int) -> tuple[Piece, ...]:
    """Return the pieces that hold `size_bytes` from `start_bytes` on of what `parts` are in a row."""
    found: list[Piece] = []
    for part in parts:
        begin, end = max(start_bytes, 0), min(start_bytes + size_bytes, part.size_bytes)
        if begin < end:
            found.append(Piece(path=part.path, offset_bytes=part.offset_bytes + begin, size_bytes=end - begin))
        start_bytes -= part.size_bytes
    return tuple(found)
