"""Compares units with the digests of their manifest, each once."""

import hashlib
from collections.abc import Iterable
from typing import Protocol

from teengined.core.errors import PackageCorrupt, PackageError
from teengined.core.model import UnitSpec

__all__ = ["DigestCheck", "check_pieces"]

# `blake2b:` and 64 hex digits.
_ALGORITHM = "blake2b"
_DIGEST_BYTES = 32


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class DigestCheck:
    """Remembers what was found right, so that bytes that stream every step are hashed at their first read only."""

    def __init__(self, *, enabled: bool) -> None:
        """Check nothing where not `enabled`."""
        self._enabled = enabled
        self._checked: set[tuple[str, int, str]] = set()
        self._suspects: set[str] = set()

    def check(self, unit: UnitSpec, memory: memoryview) -> None:
        """Compare all bytes of a unit. From any thread; hashing lets other threads run.

        Raises:
            PackageCorrupt: they differ; names the unit.
            PackageError: the digest is of an unknown kind.
        """
        if self.is_due(unit):
            check_pieces(unit, (memory,))
            self._checked.add(unit.place)

    def is_due(self, unit: UnitSpec) -> bool:
        """Say whether the unit was never compared, or not since its file was suspect, and should be."""
        return (self._enabled or unit.file in self._suspects) and unit.place not in self._checked

    def suspect(self, file: str) -> None:
        """Have every unit of a file compared again at its next read, also where nothing is compared otherwise."""
        self._suspects.add(file)
        self._checked = {place for place in self._checked if place[0] != file}


def check_pieces(unit: UnitSpec, pieces: Iterable[memoryview]) -> None:
    """Compare a unit that comes in pieces, in order. Raises as `DigestCheck.check`."""
    algorithm, _, expected = unit.digest.partition(":")
    if algorithm != _ALGORITHM:
        raise PackageError(f"unit {unit.id} has a digest of unknown kind {algorithm!r}", hint="convert the model again")
    state: _Hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for piece in pieces:
        state.update(piece)
    if state.hexdigest() != expected:
        raise PackageCorrupt(
            f"unit {unit.id} differs from its digest: bytes of {unit.file} changed since the conversion",
            hint="run `teengine verify` for the extent of it, and convert the model again",
        )
