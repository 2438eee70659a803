import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.service.detokenizer import Detokenizer


def decode(tokens) -> str:
    """Tokens are byte strings of any length, cut anywhere."""
    return b"".join(PIECES[token] for token in tokens).decode("utf-8", errors="replace")


PIECES = [bytes([byte]) for byte in range(256)]


def fold(content: bytes) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*[detokenizer.add(byte) for byte in content], detokenizer.flush()]


@given(st.text())
def test_pieces_make_the_text_and_none_has_half_a_character(text: str):
    pieces = fold(text.encode())

    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" in text or not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_told_as_the_decoder_tells_them(content: bytes):
    assert "".join(fold(content)) == content.decode("utf-8", errors="replace")


def test_open_character_waits_and_is_marked_at_the_end():
    assert fold("a€".encode()[:-1]) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_endless_nonsense_does_not_grow_the_window():
    detokenizer = Detokenizer(decode)

    text = "".join(detokenizer.add(0xFF) for _ in range(1000))

    assert len(text) >= 900
    assert len(detokenizer._window) <= 128


def test_decoder_that_strips_the_first_space_keeps_the_others():
    words = [" one", " two", " three"]
    detokenizer = Detokenizer(lambda tokens: "".join(words[token] for token in tokens).removeprefix(" "))

    assert [detokenizer.add(token) for token in range(3)] == ["one", " two", " three"]


@pytest.mark.parametrize("silent", [0, 5])
def test_tokens_without_text_add_nothing(silent: int):
    texts = {0: "", 1: "a", 5: ""}
    detokenizer = Detokenizer(lambda tokens: "".join(texts[token] for token in tokens))

    assert [detokenizer.add(silent), detokenizer.add(1), detokenizer.add(silent), detokenizer.flush()] == [
        "",
        "a",
        "",
        "",
    ]


WORDS = {0: " one", 1: " two", 2: "", 3: " three"}


def shown_fold() -> Detokenizer:
    return Detokenizer(lambda tokens: "".join(WORDS[token] for token in tokens).removeprefix(" "), {2: "<end>"})


def test_a_shown_token_stands_where_it_came_and_keeps_the_space_after_it():
    detokenizer = shown_fold()

    assert [detokenizer.add(token) for token in (0, 1, 2, 3)] == ["one", " two", "<end>", " three"]


def test_a_shown_token_may_come_first_and_twice():
    detokenizer = shown_fold()

    assert [detokenizer.add(token) for token in (2, 2, 0, 2)] == ["<end>", "<end>", "one", "<end>"]


def test_a_shown_token_ends_a_character_that_never_became_whole():
    detokenizer = Detokenizer(decode, {0: "<end>"})

    pieces = [detokenizer.add(byte) for byte in (0x61, 0xE2, 0x82, 0x00, 0x82, 0x62)]

    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}<end>\N{REPLACEMENT CHARACTER}b"


@given(st.lists(st.sampled_from([0x61, 0xE2, 0x82, 0xAC, 0x00])))
def test_shown_tokens_cut_the_bytes_around_them_into_texts_of_their_own(tokens: list[int]):
    detokenizer = Detokenizer(decode, {0: "<end>"})

    told = "".join([*[detokenizer.add(token) for token in tokens], detokenizer.flush()])

    parts = bytes(tokens).split(b"\0")
    assert told == "<end>".join(part.decode("utf-8", errors="replace") for part in parts)
