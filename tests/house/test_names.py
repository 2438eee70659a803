"""Names are the field's terms. A name that says nothing hides a room with two purposes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT, functions, parse, shipped_files, tracked_files

EMPTY_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "misc", "common", "stuff", "data"}
# Counts are `num_…`, and units come last and in full.
STRAY_NAMES = re.compile(r"(?:^|_)(?:nbytes|n_bytes|byte_count|secs?|millis|msecs?|cnt)(?:$|_)|^n_[a-z]+s$")


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return set(spaced.lower().replace("-", "_").split("_"))


def _parameters(path: Path) -> Iterator[tuple[int, str]]:
    for function in functions(path):
        for argument in (*function.args.args, *function.args.kwonlyargs):
            yield argument.lineno, argument.arg


def test_no_module_or_folder_has_an_empty_name() -> None:
    roots = ("teengined", "drivers", "plugins", "benchmarks", "tests")
    paths = [path.relative_to(ROOT) for path in tracked_files()]
    found = {
        str(p) for p in paths if p.parts[0] in roots and any(_words(Path(part).stem) & EMPTY_WORDS for part in p.parts)
    }

    assert found == set()


def test_no_class_has_an_empty_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in shipped_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and _words(node.name) & EMPTY_WORDS
    ]

    assert found == []


def test_parameters_write_counts_and_units_in_the_one_way() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in shipped_files()
        for line, name in _parameters(path)
        if STRAY_NAMES.search(name)
    ]

    assert found == []
