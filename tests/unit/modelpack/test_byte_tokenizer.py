"""The tokenizer of packages without one."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from teengined.core.errors import RequestError
from teengined.modelpack.byte_tokenizer import BOS_ID, EOS_ID, write_byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    assert set(write_byte_tokenizer(directory, 5000)) == {"tokenizer.json", "tokenizer_config.json"}
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda text: "<" not in text))
def test_a_text_is_its_bytes_and_comes_back(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids

    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_token_of_the_vocabulary_has_a_text(tokenizer: tokenizers.Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 5000
    words = {tokenizer.decode([token]) for token in range(BOS_ID + 1, 5000)}
    assert len(words) == 5000 - BOS_ID - 1
    assert all(word.strip().isalpha() for word in words)


def test_the_special_tokens_have_their_ids(tokenizer: tokenizers.Tokenizer) -> None:
    assert (tokenizer.token_to_id("<eos>"), tokenizer.token_to_id("<bos>")) == (EOS_ID, BOS_ID)


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="257 has no room"):
        write_byte_tokenizer(tmp_path, 257)
