"""Each public module says what it offers, exactly, and its docstring why it exists."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT, parse, shipped_files

MODULES = [path for path in shipped_files() if not path.stem.startswith("_")]


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case _:
                pass


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_exports_only_what_it_has(path: Path) -> None:
    exported = _exported(parse(path))

    assert exported is not None, "a public module has __all__"
    assert len(set(exported)) == len(exported)
    assert set(exported) <= set(_defined(parse(path)))


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_says_why_it_exists(path: Path) -> None:
    assert ast.get_docstring(parse(path))
