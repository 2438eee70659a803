import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.service.stop_text import StopText

LETTERS = st.text("ab", max_size=30)


def fold(pieces: list[str], stops: tuple[str, ...], include: bool = False) -> tuple[str, bool]:
    stop = StopText(stops, include)
    text = "".join([*(stop.add(piece) for piece in pieces), stop.flush()])
    return text, stop.found


def expected(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, bool]:
    """Look at every beginning of the text, shortest first."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return (text[:end] if include else text[: end - max(map(len, matches))]), True
    return text, False


@given(
    LETTERS,
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_what_comes_out_does_not_depend_on_how_the_text_was_cut(text, stops, include, seed):
    draw = random.Random(seed)
    borders = sorted(draw.choices(range(len(text) + 1), k=5))
    pieces = [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]

    assert fold(pieces, tuple(stops), include) == expected(text, tuple(stops), include), f"seed {seed}"


@given(LETTERS, st.text("ab", min_size=1, max_size=4))
def test_what_is_held_back_is_the_longest_end_that_may_become_a_stop_text(text, stop_text):
    stop = StopText((stop_text,))
    told = stop.add(text)
    if stop.found:
        return

    lengths = range(min(len(stop_text) - 1, len(text)), -1, -1)
    held = next(length for length in lengths if text.endswith(stop_text[:length]))
    assert told == text[: len(text) - held]


def test_stop_text_that_is_never_completed_is_told_at_the_end():
    stop = StopText(("stop",))

    assert [stop.add("no st"), stop.add("ore"), stop.add("s sto"), stop.flush()] == ["no ", "store", "s ", "sto"]


def test_nothing_comes_after_a_stop_text():
    stop = StopText(("x",), include=True)

    assert [stop.add("axb"), stop.add("c"), stop.flush()] == ["ax", "", ""]


def test_stop_text_that_does_not_count_is_plain_text():
    stop = StopText(("ab",))

    assert [stop.add("ab", counts=False), stop.add("ab")] == ["ab", ""]
    assert stop.found


def test_stop_text_counts_where_it_ends():
    stop = StopText(("ab",))

    assert [stop.add("a", counts=False), stop.add("b"), stop.found] == ["", "", True]


def test_shorter_stop_text_in_what_was_held_back_is_not_found_late():
    stop = StopText(("abc", "b"))

    assert [stop.add("ab", counts=False), stop.add("x"), stop.found] == ["", "abx", False]


@pytest.mark.parametrize("stop", ["\N{ZERO WIDTH JOINER}", "😀", "e\N{COMBINING ACUTE ACCENT}"])
def test_any_code_points_may_stop(stop: str):
    assert fold(["a", stop[:1], stop[1:], "z"], (stop,)) == ("a", True)


def test_a_long_text_of_near_misses_takes_steps_in_proportion_to_its_length():
    text = "a" * 20_000

    assert fold([text], ("a" * 255 + "b",)) == (text, False)
