"""One thing, one room. There is no list of exceptions: what grows too large is divided."""

import ast
import statistics
from pathlib import Path

from tests.house.tree import ROOT, Function, code_files, functions, parse, shipped_files

MAX_FILE_LINES = 500
MAX_MEDIAN_FILE_LINES = 150
MAX_FUNCTION_LINES = 70
MAX_MEDIAN_FUNCTION_LINES = 10
MAX_PARAMETERS = 5
MAX_PUBLIC_METHODS = 16


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _at(path: Path, node: ast.stmt) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def _span(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _num_parameters(function: Function) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in arguments if argument.arg not in ("self", "cls")])


def _width_is_given(function: Function) -> bool:
    """A click command takes one parameter for each option; a hook of a library says whose signature it has."""
    is_command = any(ast.unparse(decorator).startswith("click.") for decorator in function.decorator_list)
    return is_command or "The signature is " in (ast.get_docstring(function) or "")


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    assert {str(p.relative_to(ROOT)): _lines(p) for p in code_files() if _lines(p) > MAX_FILE_LINES} == {}


def test_median_file_is_short() -> None:
    lines = [_lines(path) for path in shipped_files() if path.name != "__init__.py"]

    assert statistics.median(lines) < MAX_MEDIAN_FILE_LINES


def test_no_function_is_longer_than_seventy_lines() -> None:
    found = {_at(p, f): _span(f) for p in code_files() for f in functions(p) if _span(f) > MAX_FUNCTION_LINES}

    assert found == {}


def test_median_function_is_short() -> None:
    spans = [_span(function) for path in shipped_files() for function in functions(path)]

    assert statistics.median(spans) <= MAX_MEDIAN_FUNCTION_LINES


def test_no_function_takes_more_than_five_parameters() -> None:
    found = {
        _at(path, function): function.name
        for path in shipped_files()
        for function in functions(path)
        if _num_parameters(function) > MAX_PARAMETERS and not _width_is_given(function)
    }

    assert found == {}


def test_no_class_has_more_public_methods_than_a_reader_can_hold() -> None:
    found: dict[str, int] = {}
    for path in shipped_files():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                methods = [m for m in node.body if isinstance(m, Function) and not m.name.startswith("_")]
                if len(methods) > MAX_PUBLIC_METHODS:
                    found[_at(path, node)] = len(methods)

    assert found == {}
