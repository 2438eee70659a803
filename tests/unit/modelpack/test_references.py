"""What someone who typed a model's name wrongly is told."""

from pathlib import Path

import pytest

from teengined.modelpack.references import looks_like_path, unknown_reference


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("./missing", "there is no directory or file {here}/missing", "name a directory with config.json"),
        ("./lama", "there is no directory or file {here}/lama", "did you mean {here}/llama? name a directory"),
        ("lama", "'lama' is no alias, and {here} has no directory or file", "did you mean {here}/llama?"),
        ("smolm2", "'smolm2' is no alias, and {here} has no", "did you mean smollm2?"),
        (
            "./no/such/place",
            "'./no/such/place': there is no directory {here}/no/such",
            ".gguf file, ORG/NAME on the hub",
        ),
        ("notes.txt", "'notes.txt' is a file, but no .gguf file", "name a directory"),
        ("llama/config.json", "'llama/config.json' is a file", "name its directory: {here}/llama"),
        (" ", "the model's name is empty", "an alias (smollm2)"),
        ("a\0b", "'a\\x00b' is no", "name a directory"),
        ("x" * 5000, "xxx is no", "name a directory"),
        ("~nobody-here/x", "'~nobody-here/x' is no model, and cannot be a path", "name a directory"),
    ],
)
def test_it_is_said_what_was_looked_for_where_and_what_would_work(
    here: Path, reference: str, message: str, hint: str
) -> None:
    error = unknown_reference(reference)

    assert message.format(here=here) in error.message
    assert hint.format(here=here) in error.hint
    assert len(error.message) < 500


@pytest.mark.parametrize("text", ["./x", "/x", "~/x", "../x", "x.gguf", "a/b/c", "x/"])
def test_places_of_this_machine_are_told_from_names(text: str) -> None:
    assert looks_like_path(text)
    assert not looks_like_path("org/name")
    assert not looks_like_path("smollm2")
