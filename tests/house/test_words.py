"""What may stand nowhere in the project: this machine's paths, registries' hosts, and notes about how it came to be."""

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT, tracked_files

# Written in halves, so that this file does not hold what it forbids.
REGISTRIES = [
    "pypi" + ".org",
    "python" + "hosted",
    "registry.npm" + "js",
    "deb.debian" + ".org",
    "download.py" + "torch",
]
PLACES = ["/wo" + "rk/", "/ro" + "ot/", "/home/[a-z]+/", r"\.\./sha" + "red"]
WORKINGS = [
    r"\bissue #?\d",
    r"\bthe (?:brief|assignment)\b",
    r"\bsub-?agents?\b",
    "claude",
    "chatgpt",
    "copilot",
    r"\bas an ai\b",
]
UNFINISHED = [
    r"\bTO" + r"DO\b",
    r"\bFIX" + r"ME\b",
    r"\bXX" + r"X\b",
    r"\braise NotImpl" + "emented",
    r"\bto be done\b",
]

RULES = {"registry": REGISTRIES, "place": PLACES, "working": WORKINGS, "unfinished": UNFINISHED}
TEXT_FILES = [path for path in tracked_files() if path.suffix not in (".png", ".gguf", ".safetensors", ".lock")]
PROSE_ONLY_FLAGS = {"working": re.IGNORECASE}


def _offences(text: str, rule: str) -> list[str]:
    pattern = re.compile("|".join(f"(?:{word})" for word in RULES[rule]), PROSE_ONLY_FLAGS.get(rule, 0))
    return [
        f"line {number}: {line.strip():.80}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)
    ]


@pytest.mark.parametrize("rule", RULES)
def test_no_file_says_it(rule: str) -> None:
    found = {
        str(path.relative_to(ROOT)): offences
        for path in TEXT_FILES
        if path != Path(__file__) and not (rule == "unfinished" and path.name.startswith("test_"))
        if (offences := _offences(path.read_text(errors="replace"), rule))
    }

    assert found == {}


def test_no_text_file_ends_without_a_newline_or_holds_a_carriage_return() -> None:
    texts = {path: path.read_bytes() for path in TEXT_FILES}
    found = {str(p.relative_to(ROOT)) for p, text in texts.items() if text and (text[-1:] != b"\n" or b"\r" in text)}

    assert found == set()
