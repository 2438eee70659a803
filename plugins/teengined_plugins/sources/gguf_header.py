"""Walks the head of a GGUF file that nobody vouched for, before the `gguf` library follows what it says.

The library trusts lengths and counts: a damaged one makes it read past the end for ever. Here every length is held to
what is left of the file, and nothing is kept.
"""

import mmap
import struct
from math import prod
from pathlib import Path

from teengined.core.errors import SourceError

__all__ = ["check_head"]

_VERSIONS = (2, 3)
# A file has some ten tensors a layer and some fifty metadata fields.
_MAX_TENSORS = 100_000
_MAX_FIELDS = 10_000
# The longest arrays are vocabularies and their merges; the largest have some 300,000 entries.
_MAX_ARRAY = 4_000_000
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 65_535

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def check_head(path: Path) -> None:
    """Hold every count and length of metadata and tensor table to what the file can hold.

    Raises:
        SourceError: no such file, not GGUF, or a length that lies; names the file and what is wrong.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SourceError(
                    f"{path.name} is not a GGUF file: it does not begin as one",
                    hint="a download may have failed: compare its size with the original's",
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _Walk(path.name, content).run()
    except OSError as error:
        raise SourceError(
            f"{path.absolute()} cannot be opened: {error.strerror}", hint="check the name and its rights"
        ) from error


class _Walk:
    """A position in the file that can only move forward, and never beyond its end."""

    def __init__(self, name: str, content: mmap.mmap) -> None:
        self._name = name
        self._content = content
        self._position = 4

    def run(self) -> None:
        version = self._number("<I")
        if version not in _VERSIONS:
            raise SourceError(f"{self._name} is of GGUF version {version}; versions 2 and 3 can be read")
        num_tensors, num_fields = self._number("<Q"), self._number("<Q")
        if num_tensors > _MAX_TENSORS or num_fields > _MAX_FIELDS:
            raise SourceError(f"{self._name}: its header claims {num_tensors} tensors and {num_fields} metadata fields")
        for _ in range(num_fields):
            self._string(_MAX_NAME_BYTES)
            self._value(self._number("<I"))
        for _ in range(num_tensors):
            self._tensor()

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._string(len(self._content))
        elif kind == _ARRAY:
            self._array(self._number("<I"), self._number("<Q"))
        elif kind in _SCALAR_BYTES:
            self._advance(_SCALAR_BYTES[kind])
        else:
            raise SourceError(f"{self._name}: a metadata field has the unknown type {kind}")

    def _array(self, kind: int, count: int) -> None:
        if count > _MAX_ARRAY:
            raise SourceError(f"{self._name}: a metadata array claims {count} entries")
        if kind == _STRING:
            for _ in range(count):
                self._string(len(self._content))
        elif kind in _SCALAR_BYTES:
            self._advance(count * _SCALAR_BYTES[kind])
        else:
            raise SourceError(f"{self._name}: a metadata array has entries of the unknown type {kind}")

    def _tensor(self) -> None:
        name = self._string(_MAX_NAME_BYTES)
        num_dimensions = self._number("<I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise SourceError(f"{self._name}: tensor {name!r:.120} claims {num_dimensions} dimensions")
        shape = [self._number("<Q") for _ in range(num_dimensions)]
        if prod(shape) > 16 * len(self._content):  # the densest block format has more than half a bit a value
            raise SourceError(f"{self._name}: tensor {name!r:.120} of shape {shape} cannot be in a file of this size")
        self._advance(4 + 8)

    def _string(self, max_bytes: int) -> bytes:
        length = self._number("<Q")
        if length > max_bytes:
            raise SourceError(f"{self._name} is truncated or malformed: a text claims {length} bytes")
        start = self._position
        self._advance(length)
        return self._content[start : self._position] if length <= _MAX_NAME_BYTES else b""

    def _number(self, form: str) -> int:
        start = self._position
        self._advance(struct.calcsize(form))
        return struct.unpack_from(form, self._content, start)[0]

    def _advance(self, count: int) -> None:
        if count > len(self._content) - self._position:
            raise SourceError(f"{self._name} is truncated: its head ends beyond the file")
        self._position += count
