"""Spool files that outlive a deployment: one directory for each package, held by one deployment at a time.

    KEPT/<digest of the package's name>/
        stage0, stage1, …      slots, as the workers write them
        manifest               what is in them, as `prefix_manifest` has it

Everything here may be lost, and is private: directories of mode 0700, files of 0600, removed when they are too old, too
many, or no longer wanted. What has another name is somebody else's, and is neither counted nor removed. A daemon that
died leaves no lock behind.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from teengined.service.prefix_key import read_key
from teengined.service.prefix_manifest import (
    MAX_MANIFEST_BYTES,
    ManifestRefused,
    PrefixManifest,
    decode_manifest,
    encode_manifest,
)

__all__ = ["KeptPrefixes", "PrefixStore"]

logger = logging.getLogger(__name__)

_PRIVATE_DIRECTORY, _PRIVATE_FILE = 0o700, 0o600
_MANIFEST = "manifest"
_OUR_DIRECTORY = re.compile(r"[0-9a-f]{32}")
_OUR_FILE = re.compile(r"manifest(\.new)?|stage[0-9]+")
_BLOCK_BYTES = 512  # The unit of `st_blocks`, whatever the file system's is.
_PAGE_BYTES = 4096


@dataclass(slots=True, kw_only=True, eq=False)
class KeptPrefixes:
    """One package's directory, locked until `close`. Everything here blocks on the disk, and may come from any thread.

    A write that nobody waits for any more ends before the directory is another's.
    """

    path: Path
    fingerprint: str
    """Of the deployment that has it."""
    key: bytes
    _fd: int
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> PrefixManifest | None:
        """Return what an earlier deployment left; where it is of no use here, remove it and return None."""
        try:
            return decode_manifest(self._content(), self.key, self.fingerprint)
        except FileNotFoundError:
            self.clear()  # The first time, or after a crash: files without a manifest are nothing.
            return None
        except (OSError, ManifestRefused) as error:
            logger.warning("kept KV in %s is not used: %s", self.path, error)
        self.clear()
        return None

    def write(self, manifest: PrefixManifest) -> str:
        """Replace the manifest, or drop it where the disk will not; return what went wrong, empty if nothing did.

        After a crash of the machine the manifest may be older than the slots, or newer: their digests tell.
        """
        with self._busy:
            return "" if self._fd < 0 else self._write(manifest)  # It may be another deployment's by now.

    def clear(self) -> None:
        """Remove every file; one that cannot be removed is told of and stays, for without a manifest it is nothing."""
        with self._busy:
            try:
                if self._fd >= 0:
                    _clear(self.path)
            except OSError as error:
                logger.warning("kept KV in %s cannot be removed: %s", self.path, error)

    def close(self) -> None:
        """Let another deployment have it."""
        with self._busy:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _write(self, manifest: PrefixManifest) -> str:
        temporary = self.path / f"{_MANIFEST}.new"
        try:
            _write_synced(temporary, encode_manifest(manifest, self.key))
            temporary.rename(self.path / _MANIFEST)
            os.fsync(self._fd)
        except (OSError, ManifestRefused) as error:
            for path in (temporary, self.path / _MANIFEST):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return f"the manifest of kept KV cannot be written: {error}"
        return ""

    def _content(self) -> bytes:
        fd = os.open(self.path / _MANIFEST, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) and _is_private(status)):
                raise ManifestRefused("it is not private to its owner")
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ManifestRefused(f"it has more than {MAX_MANIFEST_BYTES} bytes")
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixStore:
    """All of them. Several daemons may share the directory: each directory in it is one deployment's at a time."""

    root: Path
    key_path: Path
    max_bytes: int
    """Of all that no deployment uses; 0: nothing is kept."""
    max_age_seconds: float
    now: Callable[[], float]
    """Unix."""
    _looking: threading.Lock = field(default_factory=threading.Lock)
    """Held by who looks through the directories: a lock that is only tried must not turn a deployment away."""

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self.max_bytes > 0

    def open(self, package: str, fingerprint: str) -> KeptPrefixes | None:
        """Return a package's directory, or None where it is another deployment's or cannot be had."""
        if not self.is_on:
            return None
        path = self._path_of(package)
        with self._looking:
            try:
                key = read_key(self.key_path)
                self._make(path)
            except (OSError, ValueError) as error:
                logger.warning("KV is not kept: %s", error)
                return None
            fd = _lock(path)
        if fd is None:
            logger.info("a deployment of %s keeps no KV: another one has %s, or it cannot be used", package, path)
            return None
        return KeptPrefixes(path=path, fingerprint=fingerprint, key=key, _fd=fd)

    def forget(self, package: str) -> None:
        """Remove what is kept of a package, unless a deployment uses it."""
        with self._looking:
            if self._is_root_ours():
                self._remove(self._path_of(package))

    def trim(self) -> None:
        """Remove what is too old, what is too much, the oldest first, and everything where nothing is to be kept."""
        num_bytes = 0
        with self._looking:
            for age_seconds, path in sorted(self._free()):
                num_bytes += _size_bytes(path)
                if not self.is_on or age_seconds > self.max_age_seconds or num_bytes > self.max_bytes:
                    self._remove(path)

    def _make(self, path: Path) -> None:
        self.root.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        if not self._is_root_ours():
            raise ValueError(f"{self.root} is not private to its owner")
        path.mkdir(mode=_PRIVATE_DIRECTORY, exist_ok=True)

    def _is_root_ours(self) -> bool:
        """Whether nobody else may put anything in our place; a link to elsewhere is not ours."""
        try:
            status = self.root.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and _is_private(status)

    def _free(self) -> Iterable[tuple[float, Path]]:
        """Yield what no deployment uses, with the age of its manifest; without one it is of no use, and oldest."""
        try:
            paths = list(self.root.iterdir()) if self._is_root_ours() else []
        except OSError as error:
            logger.warning("kept KV in %s cannot be looked through: %s", self.root, error)
            return
        for path in paths:
            fd = _lock(path) if _OUR_DIRECTORY.fullmatch(path.name) else None
            if fd is None:
                continue
            os.close(fd)
            try:
                written = (path / _MANIFEST).lstat().st_mtime
            except OSError:
                written = -float("inf")
            yield self.now() - written, path

    def _remove(self, path: Path) -> None:
        fd = _lock(path)
        if fd is None:
            return
        try:
            _clear(path)
            path.rmdir()
        except OSError as error:
            logger.warning("kept KV in %s cannot be removed: %s", path, error)
        finally:
            os.close(fd)

    def _path_of(self, package: str) -> Path:
        return self.root / hashlib.blake2b(package.encode(), digest_size=16).hexdigest()


def _lock(path: Path) -> int | None:
    """Return a locked descriptor of a directory of ours, or None where it cannot be had, of which the log tells.

    Not that another has it, nor that it was just removed: both are as it should be.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("kept KV in %s is not used: %s", path, error)
        return None
    if _is_locked_as_ours(fd, path):
        return fd
    os.close(fd)
    return None


def _is_locked_as_ours(fd: int, path: Path) -> bool:
    """Lock it and say whether that worked, and the path still leads there, and nobody else may go there."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status, there = os.fstat(fd), path.lstat()
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        logger.warning("kept KV in %s is not used: %s", path, error)
        return False
    if not _is_private(status):
        logger.warning("kept KV in %s is not used: it is not private to its owner", path)
        return False
    return os.path.samestat(status, there)


def _write_synced(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE_FILE)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _clear(path: Path) -> None:
    """Remove our files, the manifest first: without it the rest is nothing, should not all of it go."""
    for entry in sorted(path.iterdir()):
        if not _OUR_FILE.fullmatch(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            entry.rmdir()
        else:
            entry.unlink(missing_ok=True)


def _size_bytes(path: Path) -> int:
    """Return what our files take in whole pages; what the file system needs to find them is not theirs."""
    try:
        return sum(_pages_bytes(entry.lstat()) for entry in path.iterdir() if _OUR_FILE.fullmatch(entry.name))
    except OSError as error:
        logger.warning("what kept KV in %s takes is not known: %s", path, error)
        return 0


def _pages_bytes(status: os.stat_result) -> int:
    whole_pages = -(-status.st_size // _PAGE_BYTES) * _PAGE_BYTES
    return min(whole_pages, status.st_blocks * _BLOCK_BYTES)
