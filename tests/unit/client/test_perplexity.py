import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.client.perplexity import Perplexity, windows_of


@given(text=st.text(alphabet="ab \n", max_size=300), num_characters=st.integers(1, 40))
def test_windows_are_the_text_in_pieces_no_longer_than_asked(text: str, num_characters: int) -> None:
    windows = list(windows_of(text, num_characters))

    assert "".join(windows) == text[: len("".join(windows))]
    assert text[len("".join(windows)) :].strip() == ""
    assert all(0 < len(window) <= num_characters for window in windows)


def test_windows_end_with_lines_where_they_can() -> None:
    assert list(windows_of("one\ntwo\nthree\n", 9)) == ["one\ntwo\n", "three\n"]


def test_a_model_that_knows_nothing_is_unsure_of_all_tokens() -> None:
    assert Perplexity(num_tokens=10, total=-10 * math.log(256)).value == pytest.approx(256)
