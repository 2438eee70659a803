"""A test that does not run says why, or it is not there."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT, code_files, parse

TESTS = [path for path in code_files() if path.relative_to(ROOT).parts[0] == "tests"]
SKIPS = ("skip", "skipif", "xfail", "importorskip", "skipTest")


def _unexplained(path: Path) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in SKIPS:
            reason = next((keyword.value for keyword in node.keywords if keyword.arg == "reason"), None)
            is_plain_skip = ast.unparse(node.func).endswith("pytest.skip") and bool(node.args)
            if reason is None and not is_plain_skip:
                yield f"{path.relative_to(ROOT)}:{node.lineno}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("pytest.mark.skip", "pytest.mark.xfail"):
            yield from _bare_marks(path, node)


def _bare_marks(path: Path, node: ast.Attribute) -> Iterator[str]:
    called = {id(call.func) for call in ast.walk(parse(path)) if isinstance(call, ast.Call)}
    if id(node) not in called:
        yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_skip_has_a_reason() -> None:
    assert [place for path in TESTS for place in _unexplained(path)] == []


def test_no_test_waits_by_the_clock_alone() -> None:
    """A sleep of a second or more in a test is a guess about how fast the machine is."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in TESTS
        if path.name.startswith("test_")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep", "asyncio.sleep")
        if node.args and isinstance(node.args[0], ast.Constant) and float(node.args[0].value) >= 1  # type: ignore[arg-type]
    ]

    assert found == []
