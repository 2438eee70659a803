"""Reading and writing `manifest.json`, and the checks that make an untrusted manifest safe to follow."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from teengined.core.dtypes import STORED_DTYPES
from teengined.core.errors import PackageError
from teengined.core.model import (
    ALIGNMENT_BYTES,
    MANIFEST_SCHEMA,
    READABLE_SCHEMAS,
    TENSOR_ALIGNMENT_BYTES,
    ModelManifest,
    TensorSpec,
    UnitKind,
    UnitSpec,
)
from teengined.core.records import RecordError
from teengined.modelpack.layout import MANIFEST_FILE, UNITS_DIRECTORY, tensor_bytes, unit_id
from teengined.modelpack.manifest_form import manifest_from_table, manifest_text
from teengined.modelpack.spread import file_status

__all__ = ["check_files", "check_manifest", "read_manifest", "write_manifest"]

# A model of 100 layers of 512 experts has some 50,000 units of about 400 bytes each in its manifest; where each unit
# spells its tensors out, it is three times that.
MAX_MANIFEST_BYTES = 128 * 2**20
_CONVERT_AGAIN = "convert the model again"
_UNIT_FILE = re.compile(rf"{UNITS_DIRECTORY}/[A-Za-z0-9][A-Za-z0-9._-]{{0,120}}\.safetensors")
_DIGEST = re.compile(r"blake2b:[0-9a-f]{64}")


def read_manifest(directory: Path) -> ModelManifest:
    """Return the checked manifest of the package in `directory`; every file it names exists and is long enough.

    Raises:
        PackageError: no manifest, another schema, or a field that does not hold; names the unit or field.
    """
    table = _read_table(directory / MANIFEST_FILE)
    schema = table.get("schema")
    if schema not in READABLE_SCHEMAS:
        raise PackageError(
            f"{directory.name}: manifest.json has schema {schema!r:.60}, this version reads {MANIFEST_SCHEMA!r}",
            hint=_CONVERT_AGAIN,
        )
    try:
        manifest = manifest_from_table(table)
    except RecordError as error:
        raise PackageError(f"{directory.name}: manifest.json: {error}", hint=_CONVERT_AGAIN) from error
    try:
        check_manifest(manifest)
    except PackageError as error:
        raise PackageError(f"{directory.name}: {error.message}", hint=_CONVERT_AGAIN) from error
    check_files(directory, manifest)
    return manifest


def write_manifest(directory: Path, manifest: ModelManifest) -> None:
    """Check the manifest and write it durably (the file is synced; the directory is the caller's)."""
    check_manifest(manifest)
    with (directory / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        file.write(manifest_text(manifest))
        file.flush()
        os.fsync(file.fileno())


def check_manifest(manifest: ModelManifest) -> None:
    """Hold the manifest to the rules of the format, without looking at any file.

    Raises:
        PackageError: the first rule broken, with the unit or field.
    """
    _check_fields(manifest)
    ends: dict[int, int] = {}
    for unit in manifest.units:
        _check_unit(unit)
        if id(unit.tensors) not in ends:  # most experts share one table
            ends[id(unit.tensors)] = _check_tensors(unit)
        end = ends[id(unit.tensors)]
        if end > unit.size_bytes:
            raise PackageError(f"unit {unit.id!r:.80}: its tensors end at {end}, beyond size_bytes {unit.size_bytes}")
    _check_no_overlap(manifest.units)
    _check_completeness(manifest)
    stored = {tensor.parameter for unit in manifest.units for tensor in unit.tensors}
    for target, owner in manifest.tied_parameters.items():
        if owner not in stored or target in stored:
            raise PackageError(f"tied_parameters: {target} shares {owner}, which must be stored while it must not")


def _read_table(path: Path) -> dict[str, Any]:
    name = f"{path.parent.name}: {path.name}"
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise PackageError(f"{name} is larger than {MAX_MANIFEST_BYTES} bytes", hint=_CONVERT_AGAIN)
        table: object = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PackageError(f"{path.parent.name} is no model package: it has no {path.name}") from error
    except OSError as error:
        raise PackageError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{name} is not JSON: {error}", hint=_CONVERT_AGAIN) from error
    if not isinstance(table, dict):
        raise PackageError(f"{name} is not a JSON object", hint=_CONVERT_AGAIN)
    return cast("dict[str, Any]", table)


def _check_fields(manifest: ModelManifest) -> None:
    for field in ("num_layers", "hidden_size", "vocab_size", "max_context_tokens"):
        if getattr(manifest, field) < 1:
            raise PackageError(f"{field} is {getattr(manifest, field)}, it must be at least 1")
    if len(manifest.kv_elements_per_token) != manifest.num_layers or min(manifest.kv_elements_per_token) < 0:
        raise PackageError(f"kv_elements_per_token needs {manifest.num_layers} entries of at least 0")
    if manifest.compute_dtype not in ("fp32", "bf16", "fp16"):
        raise PackageError(f"compute_dtype is {manifest.compute_dtype!r:.40}, not one of fp32, bf16, fp16")
    if manifest.num_experts < 0 or not 0 <= manifest.num_experts_per_token <= max(manifest.num_experts, 0):
        raise PackageError("num_experts_per_token must be between 0 and num_experts")


def _check_unit(unit: UnitSpec) -> None:
    place = f"unit {unit.id!r:.80}"
    if not _UNIT_FILE.fullmatch(unit.file):
        raise PackageError(f"{place}: file {unit.file!r:.120} is not of the form {UNITS_DIRECTORY}/NAME.safetensors")
    if unit.offset_bytes < 0 or unit.offset_bytes % ALIGNMENT_BYTES:
        raise PackageError(f"{place}: offset_bytes {unit.offset_bytes} is not a multiple of {ALIGNMENT_BYTES}")
    if unit.size_bytes <= 0 or unit.size_bytes % ALIGNMENT_BYTES:
        raise PackageError(f"{place}: size_bytes {unit.size_bytes} is not a positive multiple of {ALIGNMENT_BYTES}")
    if not _DIGEST.fullmatch(unit.digest):
        raise PackageError(f"{place}: digest is not 'blake2b:' and 64 hexadecimal digits")
    if unit.num_parameters < 0:
        raise PackageError(f"{place}: num_parameters is negative")
    if unit.id != _expected_id(unit):
        raise PackageError(f"{place}: id does not agree with kind, layer and expert")


def _check_tensors(unit: UnitSpec) -> int:
    """Return where the last tensor ends."""
    place = f"unit {unit.id!r:.80}"
    end = 0
    for tensor in sorted(unit.tensors, key=lambda tensor: tensor.offset_bytes):
        _check_tensor(tensor, place)
        if tensor.offset_bytes < end:
            raise PackageError(f"{place}: tensor {tensor.parameter!r:.120} overlaps the one before it")
        end = tensor.offset_bytes + tensor.size_bytes
    return end


def _check_tensor(tensor: TensorSpec, place: str) -> None:
    where = f"{place}: tensor {tensor.parameter!r:.120}"
    if tensor.dtype not in STORED_DTYPES:
        raise PackageError(f"{where}: dtype {tensor.dtype!r:.40} is not known")
    if any(size < 0 for size in tensor.shape):
        raise PackageError(f"{where}: shape {tensor.shape} has a negative size")
    if any(size < 0 for size in tensor.parameter_shape):
        raise PackageError(f"{where}: parameter_shape {tensor.parameter_shape} has a negative size")
    if tensor.offset_bytes < 0 or tensor.offset_bytes % TENSOR_ALIGNMENT_BYTES:
        raise PackageError(f"{where}: offset_bytes is not a multiple of {TENSOR_ALIGNMENT_BYTES}")
    expected = tensor_bytes(tensor.dtype, tensor.shape)
    if tensor.size_bytes != expected:
        raise PackageError(
            f"{where}: size_bytes is {tensor.size_bytes}, but {tensor.dtype} of shape {tensor.shape} takes {expected}"
        )


def _expected_id(unit: UnitSpec) -> str | None:
    match unit.kind, unit.layer, unit.expert:
        case ((UnitKind.EMBEDDING | UnitKind.HEAD), None, None):
            return unit.kind.value
        case UnitKind.LAYER, int(layer), None:
            return unit_id(layer)
        case UnitKind.EXPERT, int(layer), int(expert):
            return unit_id(layer, expert)
        case _:
            return None


def _check_no_overlap(units: Iterable[UnitSpec]) -> None:
    """Refuse ranges that overlap, but for units that share one range because their content is the same."""
    previous: UnitSpec | None = None
    for unit in sorted(units, key=lambda unit: (unit.file, unit.offset_bytes, unit.size_bytes)):
        if previous is not None and previous.file == unit.file:
            shared = previous.place == unit.place and previous.size_bytes == unit.size_bytes
            if not shared and unit.offset_bytes < previous.offset_bytes + previous.size_bytes:
                raise PackageError(f"unit {unit.id}: overlaps unit {previous.id} in {unit.file}")
        previous = unit


def _check_completeness(manifest: ModelManifest) -> None:
    ids = Counter(unit.id for unit in manifest.units)
    doubled = [name for name, count in ids.items() if count > 1]
    if doubled:
        raise PackageError(f"unit {doubled[0]}: listed more than once")
    needed = ["embedding", *(unit_id(layer) for layer in range(manifest.num_layers)), "head"]
    missing = [name for name in needed if name not in ids]
    if missing:
        raise PackageError(f"unit {missing[0]}: missing from the package")
    num_experts = Counter(unit.layer for unit in manifest.units if unit.kind is UnitKind.EXPERT)
    for layer, count in num_experts.items():
        absent = [unit_id(layer or 0, expert) for expert in range(count) if unit_id(layer or 0, expert) not in ids]
        if absent or count > manifest.num_experts:
            raise PackageError(f"unit {(absent or [unit_id(layer or 0)])[0]}: experts are not numbered 0 … {count - 1}")
    if any(unit.layer is not None and not 0 <= unit.layer < manifest.num_layers for unit in manifest.units):
        raise PackageError(f"a unit names a layer outside 0 … {manifest.num_layers - 1}")


def check_files(directory: Path, manifest: ModelManifest) -> None:
    """Refuse a package whose files are missing, no files of its own, or shorter than its units say.

    Raises:
        PackageError: names the first unit that lacks.
    """
    try:
        _check_files(directory, manifest.units)
    except PackageError as error:
        raise PackageError(f"{directory.name}: {error.message}", hint=_CONVERT_AGAIN) from error


def _check_files(directory: Path, units: Iterable[UnitSpec]) -> None:
    needed: dict[str, tuple[int, str]] = {}
    for unit in units:
        needed[unit.file] = max(needed.get(unit.file, (0, "")), (unit.offset_bytes + unit.size_bytes, unit.id))
    if (directory / UNITS_DIRECTORY).is_symlink():
        raise PackageError(f"{UNITS_DIRECTORY} is a symbolic link; packages hold their own files")
    for file, (end, unit) in needed.items():
        try:
            status = file_status(directory / file)
        except OSError as error:
            raise PackageError(f"unit {unit}: {file} cannot be read: {error.strerror}") from error
        if status is None:
            raise PackageError(f"unit {unit}: {file} is not a regular file")
        if status.st_size < end:
            raise PackageError(f"unit {unit}: {file} has {status.st_size} bytes, its units end at {end}")
