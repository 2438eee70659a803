"""What the bytes of a KV block depend on besides its tokens, in one line: where it differs, nothing is taken over."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from teengined import __version__
from teengined.core.device import DeviceDescription, DeviceSpec
from teengined.core.errors import PackageError
from teengined.core.plan import Plan
from teengined.modelpack.layout import MANIFEST_FILE

__all__ = ["devices_of", "fingerprint_of"]

_DIGEST_BYTES = 32
# The manifest has the digest of every unit; the configuration says how they are computed with, rotary angles above all.
_PACKAGE_FILES = (MANIFEST_FILE, "config.json")


def devices_of(
    plan: Plan, specs: Sequence[DeviceSpec], descriptions: Mapping[str, DeviceDescription]
) -> tuple[str, ...]:
    """Return what computes: the device of each stage and its threads, and the libraries of all devices."""
    threads = {spec.id: spec.threads for spec in specs}
    names = {key: item.name for key, item in descriptions.items()}
    stages = [f"{stage.device_id} {names.get(stage.device_id)} {threads.get(stage.device_id)}" for stage in plan.stages]
    versions = {version for item in descriptions.values() for version in item.library_versions}
    return (*stages, *sorted(versions))


def fingerprint_of(package_dir: Path, plan: Plan, devices: Sequence[str], settings: Mapping[str, int | str]) -> str:
    """Return the fingerprint of a deployment.

    Args:
        package_dir: Its package, of which two files are read.
        plan: Which layers run on which device, in which dtype, for how long a context.
        devices: As `devices_of` gives them.
        settings: All else that counts.

    Raises:
        PackageError: a file of the package cannot be read.
    """
    stages = [(stage.device_id, stage.layer_start, stage.layer_end, stage.compute_dtype) for stage in plan.stages]
    table = {
        "version": __version__,
        "devices": list(devices),
        "package": [_digest(_content(package_dir / name)) for name in _PACKAGE_FILES],
        "context_tokens": plan.context_tokens,
        "stages": stages,
        "settings": dict(settings),
    }
    return _digest(json.dumps(table, sort_keys=True).encode())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path.parent.name}: {path.name} cannot be read: {error.strerror}") from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
