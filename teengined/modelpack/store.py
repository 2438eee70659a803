"""The directory of model packages on a host: what is there, where it is, and how to be rid of it. Torch-free."""

import contextlib
from pathlib import Path

from teengined.core.errors import Conflict, PackageError, UnknownModel
from teengined.core.model import ModelManifest
from teengined.core.nearest import nearest
from teengined.modelpack.aliases import ALIASES
from teengined.modelpack.layout import MANIFEST_FILE
from teengined.modelpack.manifest import check_files, read_manifest
from teengined.modelpack.naming import directory_of, name_in
from teengined.modelpack.references import looks_like_path
from teengined.modelpack.spread import remove_tree, spread_target
from teengined.modelpack.workspace import is_abandoned, lock_path, locked, temporary_directories

__all__ = ["PackageStore"]

# Manifests that are kept read: one of 23,000 experts takes half a second to read and some 15 MB to keep.
_NUM_KEPT = 4


class PackageStore:
    """Packages under one root. Looks at the disk on every call, so that several processes may share it."""

    def __init__(self, root: Path) -> None:
        """Use `root`; it may not exist yet."""
        self.root = root
        self._kept: dict[Path, tuple[tuple[int, ...], ModelManifest]] = {}

    def names(self) -> tuple[str, ...]:
        """Return the names of complete packages, sorted."""
        if not self.root.is_dir():
            return ()
        found = (name_in(path.name) for path in self.root.iterdir() if (path / MANIFEST_FILE).is_file())
        return tuple(sorted(name for name in found if name is not None))

    def path_of(self, name: str) -> Path:
        """Return the directory of a package.

        Raises:
            UnknownModel: there is none of that name; the hint has the nearest names.
        """
        if name in self.names():
            return self.root / directory_of(name)
        raise UnknownModel(f"no model named {name!r:.120} in {self.root}", hint=self._hint(name))

    def manifest(self, name: str) -> ModelManifest:
        """Return the checked manifest of a package.

        Raises:
            UnknownModel: there is none of that name.
            PackageError: it is damaged.
        """
        path = self.path_of(name)
        try:
            status = (path / MANIFEST_FILE).stat()
        except OSError:
            return read_manifest(path)  # which tells what is wrong with it
        identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        kept = self._kept.get(path)
        if kept is None or kept[0] != identity:
            return self._keep(path, identity, read_manifest(path))
        check_files(path, kept[1])
        return kept[1]

    def size_bytes(self, name: str) -> int:
        """Return the bytes that the package takes on the disks."""
        files = [path for path in self.path_of(name).rglob("*") if not path.is_dir()]
        return sum((spread_target(path) or path).lstat().st_size for path in files)

    def modified_seconds(self, name: str) -> float:
        """Return when the package was made, seconds since the epoch."""
        return (self.path_of(name) / MANIFEST_FILE).stat().st_mtime

    def remove(self, name: str) -> int:
        """Delete a package and return the bytes freed.

        It vanishes under its name in one step; processes that have its files open keep reading them.

        Raises:
            UnknownModel: there is none of that name.
            Conflict: it is being replaced right now.
        """
        path, size = self.path_of(name), self.size_bytes(name)
        doomed = self.root / f".converting-{path.name}"
        with locked(lock_path(doomed)) as held:
            if not held:
                raise Conflict(f"{name} is being converted right now", hint="wait for the conversion, then remove it")
            try:
                with contextlib.suppress(OSError):
                    remove_tree(doomed)
                path.rename(doomed)
                remove_tree(doomed)
            except OSError as error:
                raise PackageError(f"{name} cannot be removed: {error.strerror}") from error
        return size

    def prune(self) -> tuple[str, ...]:
        """Delete what conversions left behind that nobody runs any more; return the directories' names."""
        removed: list[str] = []
        for directory in temporary_directories(self.root):
            if is_abandoned(directory):
                with contextlib.suppress(OSError):
                    remove_tree(directory)
                removed.append(directory.name)
        return tuple(removed)

    def _keep(self, path: Path, identity: tuple[int, ...], manifest: ModelManifest) -> ModelManifest:
        self._kept.pop(path, None)
        while len(self._kept) >= _NUM_KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[path] = (identity, manifest)
        return manifest

    def _hint(self, name: str) -> str:
        names = self.names()
        near = nearest(name, names, num_names=3, cutoff=0.5)
        if near:
            return f"did you mean {', '.join(near)}?"
        if looks_like_path(name):
            return f"`teengine convert {name:.120}` makes a package of it"
        if name in ALIASES or "/" in name:
            return f"`teengine pull {name:.120}` gets it"
        if names:
            return f"there are: {', '.join(names[:10])}"
        return "get one with `teengine pull smollm2`"
