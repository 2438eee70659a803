import difflib

import pytest

from teengined.core.nearest import nearest


def test_likeliest_names_come_first():
    assert nearest("prmpt", ["model", "prompt", "priority"]) == ["prompt"]
    assert nearest("smollm", ["smollm2", "smollm3", "other"], num_names=3, cutoff=0.5) == ["smollm3", "smollm2"]
    assert nearest("xyz", ["model"]) == []


def test_name_of_a_megabyte_is_not_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(difflib, "get_close_matches", None)

    assert nearest("prompt" * 200_000, ["prompt"]) == []
