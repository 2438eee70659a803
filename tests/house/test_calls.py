"""What no line of ours may do: run bytes from outside as code, or hand words to a shell."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.house.tree import ROOT, code_files, parse

BANNED_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BANNED_CALLS = {
    "__import__",
    "compile",
    "eval",
    "exec",
    "numpy.load",
    "os.popen",
    "os.system",
    "torch.load",
    "torch.save",
    "yaml.load",
}
BANNED_SUFFIXES = ("_pyobj", "_object_list")


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module.split(".")[0]


def _offences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    yield from ((line, name) for line, name in _imports(tree) if name in BANNED_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in BANNED_CALLS or name.endswith(BANNED_SUFFIXES):
                yield node.lineno, f"{name}()"
            yield from ((node.lineno, word) for word in _keywords(node))


def _keywords(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and not is_false:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def _unsafe_starts(tree: ast.Module) -> Iterator[int]:
    """Yield where a Python is started that would import from the directory it happens to be started in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List):
            words = [ast.unparse(element) for element in node.elts]
            yield from (node.lineno for pair in pairwise(words) if pair == ("sys.executable", "'-m'"))


OURS = [path for path in code_files() if path.relative_to(ROOT).parts[0] in ("teengined", "drivers", "plugins")]


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_is_not_started_to_import_from_the_working_directory(path: Path) -> None:
    assert list(_unsafe_starts(parse(path))) == []


def test_a_start_that_imports_from_the_working_directory_is_found() -> None:
    assert list(_unsafe_starts(ast.parse("run([sys.executable, '-m', 'json'])"))) == [1]
    assert list(_unsafe_starts(ast.parse("run([sys.executable, '-P', '-m', 'json'])"))) == []


@pytest.mark.parametrize("path", code_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_makes_no_banned_call(path: Path) -> None:
    assert list(_offences(parse(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "socket.send_pyobj(1)",
        "dist.all_gather_object_list(x)",
        "eval(text)",
        "run(words, shell=True)",
        "run(words, shell=flag)",
        "Auto.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_offence_is_found(code: str) -> None:
    assert len(list(_offences(ast.parse(code)))) == 1


def test_same_words_switched_off_are_no_offence() -> None:
    assert list(_offences(ast.parse("Auto.from_config(x, trust_remote_code=False)"))) == []
