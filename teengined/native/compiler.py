"""Compiles the C sources beside this file for the processor at hand, once, and keeps the result.

A library is code, so it is only taken where it and its directory are ours and nobody else can write to them.
"""

import atexit
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "CompilerMissing",
    "compiled_library",
    "is_private",
    "kernels_digest",
    "private_directory",
    "processor_digest",
    "processor_kernels",
]

_SOURCES = ("attention.c", "bf16_linear.c", "decoder_layer.c", "dequantise.c", "int4_linear.c", "int8_linear.c")
_COMPILERS = ("cc", "gcc", "clang")
# -march=native takes what this processor has. -ffast-math would change how the whole process treats tiny numbers.
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
# Flags of /proc/cpuinfo for what the sources ask of the processor; without them they compile to nothing, and int4's to
# plain loops.
_NEEDED_FLAGS = {
    "int8 products": {"avx512f", "avx512bw", "avx512_vnni"},
    "bf16 products": {"avx512f", "avx512bw", "avx512_bf16"},
    "attention": {"avx512f", "avx512bw", "avx512vl"},
    "decoder layers": {"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"},
}
# Five seconds on an idle machine; a machine that takes longer than this is better served without.
_COMPILE_SECONDS = 120.0
_PRIVATE_MODE = 0o700


class CompilerMissing(RuntimeError):
    """There is no library and none can be made; the text says why."""


def compiled_library(directory: Path | None = None) -> Path:
    """Return the path of the compiled kernels, compiling them if no earlier process did.

    Args:
        directory: Where compiled libraries are kept; None: `teengine/native` in `CACHE_DIRECTORY` (systemd),
            `XDG_CACHE_HOME` or `~/.cache`. Where that is not ours alone: a directory of this process, gone with it.

    Raises:
        CompilerMissing: no compiler, or it fails, or there is no place for what it makes.
    """
    compiler = _compiler()
    if compiler is None:
        raise CompilerMissing(f"none of {', '.join(_COMPILERS)} is installed")
    try:
        target = (_kept(directory) or _temporary()) / f"kernels-{_digest(compiler)}.so"
        if not _is_ours(target, stat.S_ISREG):
            _compile(compiler, target)
    except OSError as error:
        raise CompilerMissing(f"compiled kernels cannot be kept: {error}") from error
    return target


def kernels_digest() -> str:
    """Return a name for what decides how fast kernels are here: these sources, the compiler if any, the processor.

    Raises:
        OSError: a source or the compiler cannot be read.
    """
    return _digest(_compiler())


def private_directory() -> Path | None:
    """Return the directory in which compiled kernels outlive a process, made if need be; None: there is none."""
    return _kept(None)


def is_private(status: os.stat_result) -> bool:
    """Say whether what has this status is ours, and nobody else may write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compiler() -> str | None:
    return next((path for path in map(shutil.which, _COMPILERS) if path), None)


def _kept(directory: Path | None) -> Path | None:
    """Return the directory that outlives this process, made if need be; None where it is not ours alone."""
    try:
        directory = directory or _cache_directory()
        _make(directory)
        # Below what the system or the user chose, which may be a link, both levels are ours.
        trusted = _is_ours(directory, stat.S_ISDIR) and not directory.parent.is_symlink()
    except (OSError, RuntimeError):
        return None  # No home, or one that cannot be written to.
    return directory if trusted else None


def _cache_directory() -> Path:
    base = os.environ.get("CACHE_DIRECTORY") or os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "teengine" / "native" if base else Path("~/.cache/teengine/native").expanduser()


def _make(directory: Path) -> None:
    """Make a directory and its parents, each for its owner alone: `Path.mkdir` leaves parents to the umask."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=_PRIVATE_MODE, exist_ok=True)


def _temporary() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="teengine-native-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Say whether a path, itself and no link to it, is of a kind, and nobody else may write to it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return is_kind(status.st_mode) and is_private(status)


def processor_kernels(cpuinfo: str | None = None) -> tuple[str, ...]:
    """Return the names of the kernels that a processor can run; `cpuinfo` is the text of /proc/cpuinfo, None: read it.

    What a compiler too old for the processor leaves out is not seen.
    """
    text = _processor() if cpuinfo is None else cpuinfo
    flags = next(
        (line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), list[str]()
    )
    return tuple(name for name, needed in _NEEDED_FLAGS.items() if needed <= set(flags))


def _digest(compiler: str | None) -> str:
    """Return a name for this source, compiler and processor together."""
    digest = hashlib.blake2b(digest_size=16)
    here = Path(__file__).parent
    for path in sorted((*here.glob("*.c"), *here.glob("*.h"))):  # Whatever a source includes counts too.
        digest.update(path.read_bytes())
    status = Path(compiler).resolve().stat() if compiler else None
    version = (status.st_size, status.st_mtime_ns) if status else ()
    digest.update(repr((_FLAGS, compiler, *version, _processor())).encode())
    return digest.hexdigest()


def processor_digest() -> str:
    """Return a name for this processor: stock kernels too are chosen by what it has."""
    return hashlib.blake2b(_processor().encode(), digest_size=16).hexdigest()


def _processor() -> str:
    """Return what `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features")
    return "\n".join(line for line in lines if line.startswith(wanted))


def _compile(compiler: str, target: Path) -> None:
    """Compile under another name and rename: two processes may do this at once."""
    sources = [str(Path(__file__).parent / name) for name in _SOURCES]
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        output = Path(directory) / target.name
        command = [compiler, *_FLAGS, *sources, "-o", str(output)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        except subprocess.CalledProcessError as error:
            raise CompilerMissing(f"{compiler} fails: {error.stderr.strip():.400}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerMissing(f"{compiler} cannot be run: {error}") from error
        output.chmod(_PRIVATE_MODE)  # A compiler makes it as the umask says, which may let the group write.
        output.replace(target)
