"""The source tree as the house tests see it: files, their text, and their syntax trees, read once."""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "code_files", "functions", "imported_name", "parse", "shipped_files", "tracked_files"]

ROOT = Path(__file__).resolve().parents[2]
SHIPPED_ROOTS = ("teengined", "drivers", "plugins", "benchmarks")
CODE_ROOTS = (*SHIPPED_ROOTS, "tests")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """Return every file of the project: what git knows or would take, or all files where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode == 0:
        names = [name for name in listing.stdout.decode().split("\0") if name]
        return tuple(sorted(ROOT / name for name in set(names) if (ROOT / name).is_file()))
    hidden = (".venv", "__pycache__", "build", "dist")
    return tuple(sorted(p for p in ROOT.rglob("*") if p.is_file() and not set(p.relative_to(ROOT).parts) & {*hidden}))


def code_files() -> tuple[Path, ...]:
    """Return all Python files, tests included."""
    return _python_under(CODE_ROOTS)


def shipped_files() -> tuple[Path, ...]:
    """Return the Python files that are not tests."""
    return _python_under(SHIPPED_ROOTS)


def _python_under(roots: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(p for p in tracked_files() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in roots)


@functools.cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def functions(path: Path) -> Iterator[Function]:
    """Yield every function and method of a file."""
    for node in ast.walk(parse(path)):
        if isinstance(node, Function):
            yield node


def imported_name(path: Path) -> str:
    """Return the dotted name under which a file of the package, a driver or a plugin is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("drivers", "plugins"):
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
