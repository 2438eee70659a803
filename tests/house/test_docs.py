"""The documents say what is true: made pages are current, and every command and file they name is there."""

import dataclasses
import re
from pathlib import Path

import pytest

from teengined.cli.main import SECTIONS
from teengined.service.settings import Config, DeviceSettings
from tests.house import configuration_page, protocol_page
from tests.house.tree import ROOT, tracked_files

DOCUMENTS = [path for path in tracked_files() if path.suffix == ".md"]
README = ROOT / "README.md"
ROOTS = ("teengined", "drivers", "plugins", "benchmarks", "tests", "docs", "packaging", "systemd")
VERBS = [name for verbs in SECTIONS.values() for name, entry in verbs.items() if not entry.alias]


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _named_paths(text: str) -> set[str]:
    """Return what stands in backquotes and begins as a path of this tree, up to a placeholder or wildcard."""
    words = re.findall(r"`([^`\s]+)`", text)
    return {
        word.rstrip("/") for word in words if word.split("/")[0] in ROOTS and "/" in word and not set(word) & {*"<>*{…"}
    }


@pytest.mark.parametrize("page", [configuration_page, protocol_page], ids=["configuration", "protocol"])
def test_made_page_is_current(page: object) -> None:
    name = page.__name__.rpartition(".")[2].removesuffix("_page")  # type: ignore[attr-defined]

    assert (ROOT / f"docs/{name}.md").read_text() == page.render(), "run `make docs`"  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_a_document_names_is_there(document: Path) -> None:
    named = set(re.findall(r"(?:`|^ *)make ([a-z]+)", document.read_text(), re.MULTILINE))

    assert named - _targets() == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    missing = {
        name
        for name in _named_paths(document.read_text())
        if not any((base / name).exists() for base in (ROOT, ROOT / "teengined", document.parent))
    }

    assert missing == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_has_one_title(document: Path) -> None:
    outside_code = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)

    assert len(re.findall(r"^# ", outside_code, re.MULTILINE)) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_readme_names_every_verb(verb: str) -> None:
    assert re.search(rf"\bteengine {verb}\b", README.read_text())


def test_readme_names_no_verb_that_is_not_there() -> None:
    aliases = [name for verbs in SECTIONS.values() for name in verbs]
    code = "\n".join(re.findall(r"^```(?:sh|console)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE))

    assert set(re.findall(r"^(?:\$ )?teengine ([a-z]+)", code, re.MULTILINE)) - set(aliases) == set()


def test_readme_begins_with_the_two_commands() -> None:
    first_lines = README.read_text().split("\n## ")[0]

    assert first_lines.index("make run") < first_lines.index("make test")


def test_every_module_of_a_verb_is_there() -> None:
    modules = {entry.module for verbs in SECTIONS.values() for entry in verbs.values()}

    assert [name for name in modules if not (ROOT / f"teengined/cli/verbs/{name}.py").exists()] == []


@pytest.mark.parametrize("section", [*(field.name for field in dataclasses.fields(Config))])
def test_every_setting_has_a_unit_and_a_reason(section: str) -> None:
    settings = DeviceSettings if section == "devices" else type(getattr(Config(), section))
    bare = [f.name for f in dataclasses.fields(settings) if not f.metadata.get("unit") or not f.metadata.get("reason")]

    assert bare == []


def test_every_hook_is_explained_to_those_who_implement_it() -> None:
    hooks = re.findall(r"^def (teengine_\w+)", (ROOT / "teengined/interfaces/hookspecs.py").read_text(), re.MULTILINE)

    assert [hook for hook in hooks if hook not in (ROOT / "CONTRIBUTING.md").read_text()] == []


def test_every_folder_has_its_purpose_in_the_list() -> None:
    parents = [path.relative_to(ROOT).parent.parts for path in tracked_files()]
    folders = {
        "/".join(parts[:2]) for parts in parents if parts and parts[0] in ("teengined", "tests", "drivers", "plugins")
    }
    listed = set(re.findall(r"`([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text()))

    assert {folder for folder in folders if "/" in folder} - listed == set()
