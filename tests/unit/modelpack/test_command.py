from pathlib import Path

import pytest

from teengined.modelpack.command import default_name
from teengined.modelpack.naming import check_name


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("smollm2", "smollm2"),
        ("org/chat-7b", "org/chat-7b"),
        ("org/chat-7b@v2", "org/chat-7b"),
        ("/models/Chat-7B.Q4_1.gguf", "Chat-7B.Q4_1"),
        ("./a dir/my  model", "my-model"),
        ("x/y/z--w", "z-w"),
        ("./missing", "missing"),
        ("~/missing", "missing"),
        ("/", "model"),
        ("/tmp/…", "model"),
    ],
)
def test_a_reference_gets_a_name_that_can_name_a_model(reference: str, name: str) -> None:
    assert default_name(reference) == name
    assert check_name(name) == name


def test_an_existing_directory_is_named_by_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "chat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert default_name("org/chat") == "chat"
