import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, processors

from teengined.core.errors import ContextTooLong, PackageError, RequestError
from teengined.core.request import ChatMessage
from teengined.service.rendering.exchange import RenderBounds
from teengined.service.text import TextCodec
from tests.fakes.byte_package import BOS, EOS, write_byte_package

BOUNDS = RenderBounds(max_characters=1000)
NOW = datetime(2024, 2, 29, tzinfo=UTC)
HELLO = (ChatMessage(role="user", content="hi"),)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_byte_package(tmp_path)


def set_template(package: Path, template: object) -> None:
    path = package / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def test_prompt_is_encoded_as_it_is(package: Path):
    assert TextCodec(package, BOUNDS).encode("hé") == tuple("hé".encode())


def test_template_file_beats_the_configured_one(package: Path):
    (package / "chat_template.jinja").write_text("file")

    assert TextCodec(package, BOUNDS).template_source == "file"


def test_default_of_several_templates_is_taken(package: Path):
    set_template(package, [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}])

    assert TextCodec(package, BOUNDS).template_source == "plain"


def test_chat_without_template_says_what_to_do(package: Path):
    set_template(package, None)

    with pytest.raises(RequestError, match="no chat template") as caught:
        TextCodec(package, BOUNDS).render_chat(HELLO, now=NOW)

    assert "plain prompt" in caught.value.hint


def test_special_tokens_of_a_rendered_chat_are_single_tokens(package: Path):
    assert TextCodec(package, BOUNDS).encode_rendered("a<eos>") == (ord("a"), EOS)


@pytest.mark.parametrize("content", [b"\xff", b"x" * ((1 << 20) + 1)])
def test_template_that_cannot_be_read_is_a_damaged_package(package: Path, content: bytes):
    (package / "chat_template.jinja").write_bytes(content)

    with pytest.raises(PackageError, match=r"chat_template\.jinja"):
        TextCodec(package, BOUNDS)


def test_tokenizer_that_cannot_be_read_is_a_damaged_package(package: Path):
    (package / "tokenizer.json").write_text("{}")

    with pytest.raises(PackageError, match=r"tokenizer\.json cannot be read"):
        TextCodec(package, BOUNDS)


def test_end_of_sequence_has_no_text(package: Path):
    detokenizer = TextCodec(package, BOUNDS).detokenizer()

    assert [detokenizer.add(token) for token in (104, EOS, 105)] == ["h", "", "i"]


def pair_codec(directory: Path, template: str | None, config: dict[str, str]) -> TextCodec:
    """Words are tokens; `ab` is one where it stands together."""
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if template is not None:
        ids = [("<s>", 0), ("</s>", 1)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return TextCodec(directory, BOUNDS)


BEGINS, ENDS = {"bos_token": "<s>"}, {"eos_token": "</s>"}


@pytest.mark.parametrize(
    ("template", "config", "context", "continuation", "pair"),
    [
        (None, BEGINS, "a", "a", ((2,), (2,))),
        (None, BEGINS, "a", "b", ((2,), ())),
        (None, BEGINS, "ab", "ba", ((4,), (3, 2))),
        (None, BEGINS, "aa", "ba", ((2, 2), (2,))),
        (None, BEGINS, "", "ab", ((0,), (4,))),
        (None, BEGINS | ENDS, "", "ab", ((0,), (4,))),
        (None, ENDS, "", "ab", ((1,), (4,))),
        ("<s> $A", {}, "a", "a", ((0, 2), (2,))),
        ("<s> $A", {}, "", "a", ((0,), (2,))),
        ("<s> $A </s>", {}, "a", "a", ((0, 2), (2,))),
        ("<s> $A </s>", {}, "", "a", ((0,), (2,))),
        ("$A </s>", ENDS, "", "a", ((1,), (2,))),
    ],
)
def test_text_is_divided_at_its_border_as_evaluation_harnesses_do(
    tmp_path: Path, template: str | None, config: dict[str, str], context: str, continuation: str, pair
):
    codec = pair_codec(tmp_path, template, config)

    if not pair[1]:
        with pytest.raises(RequestError, match="adds no token"):
            codec.encode_pair(context, continuation)
    else:
        assert codec.encode_pair(context, continuation) == pair


def test_empty_context_of_a_model_without_a_first_token_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match="no token that begins"):
        pair_codec(tmp_path, None, {}).encode_pair("", "a")


def test_prompt_beyond_the_context_is_refused_by_its_number_of_tokens(package: Path):
    codec = TextCodec(package, BOUNDS)

    assert len(codec.encode("a" * 10, max_tokens=10)) == 10
    with pytest.raises(ContextTooLong, match="11 prompt tokens; bytes is loaded with a context of 10"):
        codec.encode("a" * 11, max_tokens=10)
    with pytest.raises(ContextTooLong):
        codec.encode_rendered("four", max_tokens=3)


def test_special_tokens_that_are_asked_for_have_their_name_as_text(package: Path):
    detokenizer = TextCodec(package, BOUNDS).detokenizer({"<eos>", "<no such token>"})

    assert [detokenizer.add(token) for token in (104, EOS, BOS, 105)] == ["h", "<eos>", "", "i"]
