from pathlib import Path

import pytest

from teengined.cli.grammar import grammar_from


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is one JSON object"),
        (b"[1]", "it is no object"),
        (b"\xff", "not UTF-8"),
        (b"[" * 60_000, "is one JSON object"),
        (b'{"title": "' + b"x" * (1 << 17) + b'"}', "of at most 65536 characters"),
    ],
)
def test_a_file_that_is_no_schema_is_refused_with_its_name(tmp_path: Path, content: bytes, told: str):
    file = tmp_path / "schema.json"
    file.write_bytes(content)

    with pytest.raises(ValueError, match=told) as caught:
        grammar_from(str(file))

    assert str(file) in str(caught.value)


def test_a_directory_is_no_schema(tmp_path: Path):
    with pytest.raises(ValueError, match="is no such file"):
        grammar_from(str(tmp_path))
