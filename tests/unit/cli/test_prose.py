import pytest

from teengined.cli.prose import age, count, printable


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "just now"), (61, "1 minute ago"), (7200, "2 hours ago"), (86400 * 3, "3 days ago"), (-5, "just now")],
)
def test_ages_are_told_in_one_unit(seconds: float, expected: str):
    assert age(1000.0, 1000.0 + seconds) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(999, "999"), (135_000_000, "135M"), (1_240_000_000, "1.2B"), (70_000_000_000, "70B")]
)
def test_parameters_are_counted_as_models_are_named(number: int, expected: str):
    assert count(number) == expected


def test_text_of_a_model_cannot_drive_the_terminal():
    assert printable("a\x1b[2Jb\x07\tc\nd\x9b") == "a[2Jb\tc\nd"
