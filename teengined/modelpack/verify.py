"""Holds the bytes of a package to the digests in its manifest."""

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

from teengined.core.errors import PackageCorrupt, PackageError
from teengined.core.model import ModelManifest, UnitSpec
from teengined.modelpack.manifest import read_manifest

__all__ = [
    "BytesLike",
    "check_companions",
    "check_unit",
    "check_unit_on_disk",
    "digest_of",
    "new_digest",
    "verify_package",
]

BytesLike = bytes | bytearray | memoryview

READ_BYTES = 8 * 2**20


def new_digest() -> "hashlib.blake2b":
    """Return the running digest that units are sealed with."""
    return hashlib.blake2b(digest_size=32)


def digest_of(content: BytesLike) -> str:
    """Return `blake2b:` and 64 hexadecimal digits for bytes in memory."""
    return f"blake2b:{hashlib.blake2b(content, digest_size=32).hexdigest()}"


def check_unit(unit: UnitSpec, buffer: BytesLike) -> None:
    """Compare a unit's bytes, all `size_bytes` of them, with its digest.

    Raises:
        PackageCorrupt: they differ; names the unit.
    """
    _compare(unit, digest_of(buffer))


def check_unit_on_disk(directory: Path, unit: UnitSpec) -> None:
    """Read a unit's bytes in pieces and compare them with its digest.

    Raises:
        PackageError: the file cannot be read.
        PackageCorrupt: its bytes differ; names the unit.
    """
    _compare(unit, _digest_on_disk(directory, unit))


def verify_package(directory: Path, progress: Callable[[int, int], None] | None = None) -> ModelManifest:
    """Read every unit, once where several share bytes, and compare its digest; `progress` gets bytes done and total.

    Raises:
        PackageError: the manifest does not hold.
        PackageCorrupt: the first unit whose bytes differ.
    """
    manifest = read_manifest(directory)
    done, total = 0, manifest.stored_bytes
    seen: set[tuple[str, int, str]] = set()
    for unit in manifest.units:
        if unit.place in seen:
            continue
        seen.add(unit.place)
        check_unit_on_disk(directory, unit)
        done += unit.size_bytes
        if progress is not None:
            progress(done, total)
    check_companions(directory, manifest)
    return manifest


def _compare(unit: UnitSpec, actual: str) -> None:
    if not hmac.compare_digest(actual, unit.digest):
        raise PackageCorrupt(
            f"unit {unit.id}: its bytes in {unit.file} differ from their digest",
            hint="the disk or a copy damaged it: convert or copy the package again",
        )


def _digest_on_disk(directory: Path, unit: UnitSpec) -> str:
    digest = new_digest()
    left = unit.size_bytes
    try:
        with (directory / unit.file).open("rb", buffering=0) as file:
            file.seek(unit.offset_bytes)
            while left and (chunk := file.read(min(READ_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise PackageError(f"unit {unit.id}: {unit.file} cannot be read: {error.strerror}") from error
    return f"blake2b:{digest.hexdigest()}"


def check_companions(directory: Path, manifest: ModelManifest) -> None:
    """Compare configuration and tokenizer with their digests: a changed figure there gives wrong answers too.

    Raises:
        PackageError: one cannot be read.
        PackageCorrupt: one differs; names it.
    """
    for file, expected in (("config.json", manifest.config_digest), ("tokenizer.json", manifest.tokenizer_digest)):
        try:
            actual = digest_of((directory / file).read_bytes())
        except OSError as error:
            raise PackageError(f"{file} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise PackageCorrupt(f"{file} differs from its digest", hint="convert or copy the package again")
