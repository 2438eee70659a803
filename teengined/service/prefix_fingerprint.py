"""What the bytes of a KV block depend on besides its tokens, in one line: where it differs, nothing is taken over."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from teengined import __version__
from teengined.core.errors import PackageError
from teengined.core.plan import Plan
from teengined.modelpack.layout import MANIFEST_FILE

__all__ = ["fingerprint_of"]

_DIGEST_BYTES = 32
# The manifest has the digest of every unit; the configuration says how they are computed with, rotary angles above all.
_PACKAGE_FILES = (MANIFEST_FILE, "config.json")


def fingerprint_of(package_dir: Path, plan: Plan, versions: Sequence[str], settings: Mapping[str, int | str]) -> str:
    """Return the fingerprint of a deployment.

    Args:
        package_dir: Its package, of which two files are read.
        plan: Which layers run on which device, in which dtype, for how long a context.
        versions: Of the libraries that compute.
        settings: All else that counts.

    Raises:
        PackageError: a file of the package cannot be read.
    """
    stages = [(stage.device_id, stage.layer_start, stage.layer_end, stage.compute_dtype) for stage in plan.stages]
    table = {
        "version": __version__,
        "libraries": sorted(versions),
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
