"""The top of the tree is as the README says, and a test stands where its module stands."""

import tomllib

import pytest

from tests.house.tree import ROOT, code_files, tracked_files

TOP = {
    ".ci", ".gitignore", "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "benchmarks",
    "constraints.txt", "docs", "drivers", "packaging", "plugins", "pyproject.toml", "systemd", "teengined", "tests",
    "typings",
}  # fmt: skip


def test_top_of_the_tree_holds_what_it_should_and_nothing_else() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} == TOP


@pytest.mark.parametrize("root", ["teengined", "drivers/teengined_drivers", "plugins/teengined_plugins"])
def test_every_package_is_marked_as_typed_and_has_an_init(root: str) -> None:
    folders = {path.parent for path in code_files() if path.is_relative_to(ROOT / root)}

    assert (ROOT / root / "py.typed").exists()
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_entry_point_names_a_module_that_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = [*project["entry-points"]["teengine"].values(), *(s.split(":")[0] for s in project["scripts"].values())]
    homes = [ROOT, ROOT / "drivers", ROOT / "plugins"]
    missing = [m for m in modules if not any((home / (m.replace(".", "/") + ".py")).exists() for home in homes)]

    assert missing == []


def test_every_dependency_is_pinned() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*configuration["project"]["dependencies"], *configuration["dependency-groups"]["dev"]]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }

    assert {word.split(">")[0].split("==")[0].lower() for word in wanted} - pinned == set()


def test_unit_tests_stand_where_their_packages_stand() -> None:
    packages = {path.parent.name for path in code_files()} | {path.stem for path in code_files()}
    folders = {
        p.relative_to(ROOT / "tests/unit").parts[0] for p in code_files() if p.is_relative_to(ROOT / "tests/unit")
    }

    assert {folder for folder in folders if folder not in packages} == set()
