import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from teengined.core.errors import PackageError, RequestError
from teengined.core.request import ChatMessage
from teengined.service.text import TextCodec
from tests.fakes.byte_package import BOS, EOS, write_byte_package

NOW = datetime(2024, 2, 29, tzinfo=UTC)
HELLO = (ChatMessage(role="user", content="hi"),)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_byte_package(tmp_path)


def set_template(package: Path, template: object) -> None:
    path = package / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def test_prompt_is_encoded_as_it_is(package: Path):
    assert TextCodec(package, 1000).encode("hé") == tuple("hé".encode())


def test_template_file_beats_the_configured_one(package: Path):
    (package / "chat_template.jinja").write_text("file")

    assert TextCodec(package, 1000).template_source == "file"


def test_default_of_several_templates_is_taken(package: Path):
    set_template(package, [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}])

    assert TextCodec(package, 1000).template_source == "plain"


def test_chat_without_template_says_what_to_do(package: Path):
    set_template(package, None)

    with pytest.raises(RequestError, match="no chat template") as caught:
        TextCodec(package, 1000).render_chat(HELLO, now=NOW)

    assert "plain prompt" in caught.value.hint


def test_special_tokens_of_a_rendered_chat_are_single_tokens(package: Path):
    assert TextCodec(package, 1000).encode_rendered("a<eos>") == (ord("a"), EOS)


@pytest.mark.parametrize("content", [b"\xff", b"x" * ((1 << 20) + 1)])
def test_template_that_cannot_be_read_is_a_damaged_package(package: Path, content: bytes):
    (package / "chat_template.jinja").write_bytes(content)

    with pytest.raises(PackageError, match=r"chat_template\.jinja"):
        TextCodec(package, 1000)


def test_tokenizer_that_cannot_be_read_is_a_damaged_package(package: Path):
    (package / "tokenizer.json").write_text("{}")

    with pytest.raises(PackageError, match=r"tokenizer\.json cannot be read"):
        TextCodec(package, 1000)


def test_end_of_sequence_has_no_text(package: Path):
    detokenizer = TextCodec(package, 1000).detokenizer()

    assert [detokenizer.add(token) for token in (104, EOS, 105)] == ["h", "", "i"]


def test_special_tokens_that_are_asked_for_have_their_name_as_text(package: Path):
    detokenizer = TextCodec(package, 1000).detokenizer({"<eos>", "<no such token>"})

    assert [detokenizer.add(token) for token in (104, EOS, BOS, 105)] == ["h", "<eos>", "", "i"]
